//! What a broker call means for each of its rows.

use std::collections::HashSet;

use antiphon_core::BoxError;
use antiphon_messaging::{Message, PublishError, PublishErrorKind, Receipt};

use super::block::Scope;
use super::settings::KeyPolicy;

/// What happens to a row that was handed to the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The broker has it.
    Confirmed,
    /// It is sent again, with the same id.
    Again,
    /// The broker will never take it.
    Bury(String),
}

/// The verdicts on a batch, in its order, and what must wait before it is tried again.
#[derive(Debug, Default)]
pub(super) struct Judgement {
    pub(super) verdicts: Vec<Verdict>,
    pub(super) close: HashSet<Scope>,
}

/// Judges a batch that was published in the order of `messages`.
///
/// A failure is the topic's when the kind of error says so, or when nothing else of the topic got
/// through; else it is that of the key. After a failure the later rows of the key are sent again
/// even if the broker has them: a consumer must not be left with the earlier row as the last one.
/// The consumer's inbox suppresses the repetition.
pub(super) fn judge(
    messages: &[&Message],
    answers: &[Result<Receipt, PublishError>],
    policy: KeyPolicy,
) -> Judgement {
    if answers.len() == messages.len() && answers.iter().all(Result::is_ok) {
        let verdicts = messages.iter().map(|_| Verdict::Confirmed).collect();
        return Judgement { verdicts, close: HashSet::new() };
    }
    let working: HashSet<&str> = messages
        .iter()
        .zip(answers)
        .filter(|(_, answer)| answer.is_ok())
        .map(|(message, _)| message.topic.as_str())
        .collect();
    let mut held_up: HashSet<(&str, &str)> = HashSet::new();
    let mut judgement = Judgement::default();
    for (index, message) in messages.iter().enumerate() {
        let stream = (message.topic.as_str(), message.key.as_str());
        let is_behind = !message.key.is_empty() && held_up.contains(&stream);
        judgement.verdicts.push(match answers.get(index) {
            Some(Ok(_)) if !is_behind => Verdict::Confirmed,
            Some(Err(error)) if error.is_permanent() && policy == KeyPolicy::Skip => {
                Verdict::Bury(describe(error))
            }
            Some(Err(error)) => {
                held_up.insert(stream);
                judgement.close.insert(scope_of(message, error, &working));
                Verdict::Again
            }
            Some(Ok(_)) | None => Verdict::Again,
        });
    }
    judgement
}

fn scope_of(message: &Message, error: &PublishError, working: &HashSet<&str>) -> Scope {
    let is_topics = match error.kind {
        PublishErrorKind::Unroutable | PublishErrorKind::Unauthorized => true,
        PublishErrorKind::TooLarge | PublishErrorKind::Rejected => false,
        _ => !working.contains(message.topic.as_str()),
    };
    if is_topics { Scope::topic_of(message) } else { Scope::key_of(message) }
}

/// The error with its causes, in one line.
fn describe(error: &PublishError) -> String {
    let mut text = error.to_string();
    let mut source = error.source.as_ref().map(|error: &BoxError| {
        let error: &(dyn std::error::Error + 'static) = error.as_ref();
        error
    });
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use antiphon_messaging::Sent;

    use super::*;
    use crate::relay::fixture::message;

    fn failed(kind: PublishErrorKind) -> Result<Receipt, PublishError> {
        Err(PublishError { topic: "t".into(), kind, sent: Sent::Maybe, source: None })
    }

    #[test]
    fn verdicts_follow_the_kind_of_failure() {
        use PublishErrorKind as Kind;
        let key = |key: &str| Scope::Key("orders".into(), key.into());
        let topic = Scope::Topic("orders".into());
        // (what the broker said of a#1, b#2, a#3; policy) → (verdicts, scopes closed)
        let cases = [
            ([Ok(Receipt), Ok(Receipt), Ok(Receipt)], KeyPolicy::Skip, "C C C", vec![]),
            // P4: no confirmation of anything: the destination waits, all go again.
            (
                [
                    failed(Kind::Disconnected),
                    failed(Kind::Disconnected),
                    failed(Kind::Disconnected),
                ],
                KeyPolicy::Skip,
                "A A A",
                vec![topic.clone()],
            ),
            // One key fails while the topic works: that key waits, its later row goes again.
            (
                [failed(Kind::Disconnected), Ok(Receipt), Ok(Receipt)],
                KeyPolicy::Skip,
                "A C A",
                vec![key("a")],
            ),
            // P7: poison is put aside and holds nobody up.
            ([failed(Kind::TooLarge), Ok(Receipt), Ok(Receipt)], KeyPolicy::Skip, "B C C", vec![]),
            (
                [failed(Kind::Rejected), Ok(Receipt), Ok(Receipt)],
                KeyPolicy::Halt,
                "A C A",
                vec![key("a")],
            ),
            // A topic that does not exist is nobody's poison.
            (
                [failed(Kind::Unroutable), Ok(Receipt), failed(Kind::Unroutable)],
                KeyPolicy::Skip,
                "A C A",
                vec![topic],
            ),
        ];
        for (answers, policy, expected, close) in cases {
            let messages = [message("orders", "a"), message("orders", "b"), message("orders", "a")];
            let judgement = judge(&messages.iter().collect::<Vec<_>>(), &answers, policy);
            let verdicts: Vec<_> = judgement
                .verdicts
                .iter()
                .map(|verdict| match verdict {
                    Verdict::Confirmed => "C",
                    Verdict::Again => "A",
                    Verdict::Bury(_) => "B",
                })
                .collect();
            assert_eq!(verdicts.join(" "), expected, "{answers:?}");
            assert_eq!(judgement.close, close.into_iter().collect(), "{answers:?}");
        }
    }

    #[test]
    fn a_row_without_an_answer_goes_again() {
        let messages = [message("orders", "a"), message("orders", "b")];
        let judgement = judge(&[&messages[0], &messages[1]], &[Ok(Receipt)], KeyPolicy::Skip);
        assert_eq!(judgement.verdicts, [Verdict::Confirmed, Verdict::Again]);
    }
}
