//! `antiphon dead`: messages that nobody will try again unless an operator says so.

use std::num::NonZeroU32;
use std::time::Duration;

use antiphon::messaging::{DeadFilter, DeadLetter, DeadLetters, Redrive};
use antiphon::operate::Operations;
use antiphon::{Clock, MessageId, Timestamp};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::listing::{Format, Listing, cell};
use crate::output::say;

/// How many letters are read or forgotten at once.
const PAGE: usize = 500;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists dead letters.
    List {
        #[command(flatten)]
        filter: Filter,
        /// At most so many.
        #[arg(long, value_name = "COUNT", default_value_t = 100)]
        limit: usize,
    },
    /// Shows one dead letter with its headers and every death.
    Show {
        /// The group that could not handle it.
        group: String,
        /// The id of the message.
        id: MessageId,
    },
    /// Gives dead letters back to the group that failed, and to no other, with their ids.
    ///
    /// What the group has handled meanwhile is not handled twice: its inbox knows the id.
    Redrive {
        #[command(flatten)]
        filter: Filter,
        /// Only this message; goes with --group.
        #[arg(long, value_name = "ID", requires = "group")]
        id: Option<MessageId>,
        /// Only shows what would be given back.
        #[arg(long)]
        dry_run: bool,
        /// At most so many a second.
        #[arg(long, value_name = "COUNT", default_value = "50")]
        rate: NonZeroU32,
        /// At most so many in all.
        #[arg(long, value_name = "COUNT")]
        limit: Option<usize>,
    },
    /// Forgets dead letters for good.
    Discard {
        #[command(flatten)]
        filter: Filter,
        /// Only this message; goes with --group.
        #[arg(long, value_name = "ID", requires = "group")]
        id: Option<MessageId>,
        /// Really does it; without it, only shows what would be forgotten.
        #[arg(long)]
        yes: bool,
    },
}

/// Which dead letters.
#[derive(Args, Debug)]
pub(crate) struct Filter {
    /// Only of this group.
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Only those that died of this: `attempts`, `permanent`, `decode`, `dedup-horizon`, `expired`.
    #[arg(long, value_name = "CODE")]
    reason: Option<String>,
    /// Only of this message type.
    #[arg(long, value_name = "TYPE")]
    kind: Option<String>,
    /// Only of this key.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Only those that died within this time: `90s`, `2h`, `7d`.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    since: Option<Duration>,
}

impl Filter {
    fn of(self, now: Timestamp) -> DeadFilter {
        DeadFilter {
            group: self.group,
            code: self.reason,
            kind: self.kind,
            key: self.key,
            since: self.since.map(|age| now - age),
        }
    }
}

pub(crate) async fn run(
    operations: &Operations,
    format: Format,
    command: Command,
) -> antiphon::Result<()> {
    let brokers = operations.brokers().await?;
    let letters = super::dead_letters(&brokers)?;
    let letters = &*letters;
    let now = Clock::system().now();
    match command {
        Command::List { filter, limit } => {
            print(&page(letters, &filter.of(now), limit).await?, format);
            Ok(())
        }
        Command::Show { group, id } => show(&known(letters, &group, id).await?, format),
        Command::Redrive { filter, id: Some(id), dry_run, .. } => {
            let group = filter.group.unwrap_or_default();
            let letter = known(letters, &group, id).await?;
            print(std::slice::from_ref(&letter), format);
            if !dry_run {
                let count = letters.redrive(&group, &[id]).await?;
                say(&format!("{count} given back to {group}."));
            }
            Ok(())
        }
        Command::Redrive { filter, id: None, dry_run, rate, limit } => {
            let filter = filter.of(now);
            let limit = limit.unwrap_or(usize::MAX);
            if dry_run {
                return preview(letters, &filter, limit, "would be given back", format).await;
            }
            redrive(letters, filter, rate, limit).await
        }
        Command::Discard { filter, id: Some(id), yes } => {
            let group = filter.group.unwrap_or_default();
            let letter = known(letters, &group, id).await?;
            print(std::slice::from_ref(&letter), format);
            if yes {
                let count = letters.discard(&group, &[id]).await?;
                say(&format!("{count} forgotten."));
            } else {
                say("Nothing was forgotten; say --yes to do it.");
            }
            Ok(())
        }
        Command::Discard { filter, id: None, yes } => {
            let filter = filter.of(now);
            if yes {
                return discard(letters, &filter).await;
            }
            preview(letters, &filter, usize::MAX, "would be forgotten with --yes", format).await
        }
    }
}

/// One letter that must be there.
async fn known(
    letters: &dyn DeadLetters,
    group: &str,
    id: MessageId,
) -> antiphon::Result<DeadLetter> {
    letters.get(group, id).await?.ok_or_else(|| {
        let text = format!(
            "the group {group} has no dead letter {id}: it was given back, forgotten, or never died"
        );
        text.into()
    })
}

/// The first letters that match.
async fn page(
    letters: &dyn DeadLetters,
    filter: &DeadFilter,
    limit: usize,
) -> antiphon::Result<Vec<DeadLetter>> {
    let mut all: Vec<DeadLetter> = Vec::new();
    while all.len() < limit {
        let after = all.last().map(|last| (last.group.clone(), last.message.id));
        let after = after.as_ref().map(|(group, id)| (group.as_str(), *id));
        let next = letters.list(filter, after, PAGE.min(limit - all.len())).await?;
        if next.is_empty() {
            break;
        }
        all.extend(next);
    }
    Ok(all)
}

/// Shows what something would be done to.
async fn preview(
    letters: &dyn DeadLetters,
    filter: &DeadFilter,
    limit: usize,
    what: &str,
    format: Format,
) -> antiphon::Result<()> {
    let matching = page(letters, filter, limit).await?;
    print(&matching, format);
    say(&format!("{} {what}.", matching.len()));
    Ok(())
}

async fn redrive(
    letters: &dyn DeadLetters,
    filter: DeadFilter,
    rate: NonZeroU32,
    limit: usize,
) -> antiphon::Result<()> {
    let count = Redrive::new(filter.clone()).count_max(limit).dry_run().run(letters).await?;
    let bar = ProgressBar::new(u64::try_from(count.matched)?);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} given back, {eta} left")?);
    let redrive = Redrive::new(filter).per_second(rate).count_max(count.matched.min(limit));
    let done = redrive
        .watched(letters, |done| bar.set_position(u64::try_from(done.redriven).unwrap_or(0)))
        .await;
    bar.finish_and_clear();
    let done = done?;
    say(&format!("{} of {} given back.", done.redriven, done.matched));
    Ok(())
}

async fn discard(letters: &dyn DeadLetters, filter: &DeadFilter) -> antiphon::Result<()> {
    let mut forgotten = 0;
    loop {
        let page = letters.list(filter, None, PAGE).await?;
        if page.is_empty() {
            break;
        }
        let before = forgotten;
        for of_group in page.chunk_by(|one, next| one.group == next.group) {
            let ids: Vec<MessageId> = of_group.iter().map(|letter| letter.message.id).collect();
            forgotten += letters.discard(&of_group[0].group, &ids).await?;
        }
        if forgotten == before {
            return Err("dead letters are listed that cannot be forgotten".into());
        }
    }
    say(&format!("{forgotten} forgotten."));
    Ok(())
}

fn print(letters: &[DeadLetter], format: Format) {
    let columns = &["group", "id", "kind", "key", "reason", "error", "attempts", "redrives", "at"];
    let mut listing = Listing::new(columns, "There are no such dead letters.");
    for letter in letters {
        let last = letter.deaths.last();
        listing.row([
            json!(letter.group),
            json!(letter.message.id.to_string()),
            json!(letter.message.kind),
            json!(letter.message.key),
            json!(last.map(|dead| &dead.code)),
            json!(last.map(|dead| &dead.error)),
            json!(last.map(|dead| dead.attempts)),
            json!(letter.redrives()),
            last.map_or(Value::Null, |dead| super::moment(dead.at)),
        ]);
    }
    listing.print(format);
}

/// Everything of one letter.
fn show(letter: &DeadLetter, format: Format) -> antiphon::Result<()> {
    let message = &letter.message;
    let deaths: Vec<Value> = letter
        .deaths
        .iter()
        .map(|dead| {
            json!({"reason": dead.code, "error": dead.error, "attempts": dead.attempts,
                   "at": super::moment(dead.at)})
        })
        .collect();
    let fields = [
        ("group", json!(letter.group)),
        ("id", json!(message.id.to_string())),
        ("topic", json!(message.topic)),
        ("kind", json!(message.kind)),
        ("source", json!(message.source)),
        ("key", json!(message.key)),
        ("time", super::moment(message.time)),
        ("body_bytes", json!(message.body.len())),
    ];
    if format == Format::Json {
        let mut object: serde_json::Map<String, Value> =
            fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        object.insert("attributes".into(), json!(message.attributes));
        object.insert("deaths".into(), Value::Array(deaths));
        say!("{:#}", Value::Object(object));
        return Ok(());
    }
    for (name, value) in fields {
        say!("{name:<12} {}", cell(&value));
    }
    say!("attributes");
    for (name, value) in &message.attributes {
        say!("  {name:<20} {value}");
    }
    say!("deaths");
    for dead in &deaths {
        let field = |name: &str| cell(&dead[name]);
        say!(
            "  {}  {} after {} attempts: {}",
            field("at"),
            field("reason"),
            field("attempts"),
            field("error")
        );
    }
    Ok(())
}

/// What was done, beside the listing: on stderr, so that JSON stays JSON.
#[expect(clippy::print_stderr, reason = "the outcome, for people")]
fn say(text: &str) {
    eprintln!("{text}");
}
