//! What the server's word on one message means.

use antiphon_messaging::{PublishErrorKind, Receipt, Sent};

use super::{Answer, Letter, To};
use crate::error::{Fault, not_taken};

/// What the server, or the client library, said of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// It has it.
    Taken,
    /// It has it no longer, since no queue wanted it.
    Returned,
    /// It could not keep it everywhere.
    Refused,
    /// Confirms are not on: nothing is known.
    Silent,
    /// The channel ended.
    Ended(Fault),
}

/// What is answered. `is_cause` when the channel ended because of this very message.
pub(super) fn judge(letter: &Letter, word: &Word, is_cause: bool) -> Answer {
    let name = letter.name.as_str();
    let refuse = |kind, sent, why: &str| Err(not_taken(name, kind, sent, why));
    match word {
        Word::Taken => Ok(Receipt),
        Word::Returned => refuse(
            PublishErrorKind::Unroutable,
            Sent::No,
            "no group reads this topic; declare one, or set `broker.rabbitmq.unread` to `drop`",
        ),
        // One queue may have it and another not.
        Word::Refused => refuse(
            PublishErrorKind::Overloaded,
            Sent::Maybe,
            "the server could not store it in every queue: one is full or has no majority",
        ),
        Word::Silent => refuse(
            PublishErrorKind::Disconnected,
            Sent::Maybe,
            "the server confirms nothing on this channel",
        ),
        Word::Ended(fault) if is_cause => {
            let kind = match fault {
                Fault::NotFound(_) => PublishErrorKind::Unroutable,
                Fault::Denied(_) => PublishErrorKind::Unauthorized,
                _ => PublishErrorKind::TooLarge,
            };
            refuse(kind, Sent::No, fault.text())
        }
        Word::Ended(fault) => refuse(PublishErrorKind::Disconnected, Sent::Maybe, fault.text()),
    }
}

/// Whether the channel may have ended because of this message. The first in the order of sending is
/// the one; those before it may have arrived.
pub(super) fn may_be_cause(letter: &Letter, fault: &Fault) -> bool {
    match fault {
        Fault::NotFound(_) | Fault::Denied(_) => {
            letter.to == To::Topic && fault.names(letter.name.as_str())
        }
        Fault::Precondition(_) => fault.size_limit().is_some_and(|max| letter.body.len() > max),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(to: To, body: usize) -> Letter {
        Letter {
            to,
            name: "orders".into(),
            route: "0.0.0.0",
            key: String::new(),
            id: String::new(),
            properties: lapin::BasicProperties::default(),
            body: vec![0; body].into(),
        }
    }

    #[test]
    fn the_servers_word_decides_kind_and_certainty() {
        use PublishErrorKind as Kind;
        let gone = || Word::Ended(Fault::Gone("reset".into()));
        let missing = || Word::Ended(Fault::NotFound("no exchange 'orders'".into()));
        let denied = || Word::Ended(Fault::Denied("access to exchange 'orders'".into()));
        let large = || Word::Ended(Fault::Precondition("message size 9 … max size 5".into()));
        for (word, is_cause, expected) in [
            (Word::Taken, false, None),
            (Word::Returned, false, Some((Kind::Unroutable, Sent::No))),
            (Word::Refused, false, Some((Kind::Overloaded, Sent::Maybe))),
            (Word::Silent, false, Some((Kind::Disconnected, Sent::Maybe))),
            (gone(), false, Some((Kind::Disconnected, Sent::Maybe))),
            (missing(), false, Some((Kind::Disconnected, Sent::Maybe))),
            (missing(), true, Some((Kind::Unroutable, Sent::No))),
            (denied(), true, Some((Kind::Unauthorized, Sent::No))),
            (large(), true, Some((Kind::TooLarge, Sent::No))),
        ] {
            let answer = judge(&letter(To::Topic, 0), &word, is_cause);
            let found = answer.err().map(|error| (error.kind, error.sent));
            assert_eq!(found, expected, "{word:?}");
        }
    }

    #[test]
    fn the_cause_is_what_the_server_speaks_of() {
        let missing = Fault::NotFound("NOT_FOUND - no exchange 'orders' in vhost '/'".into());
        assert!(may_be_cause(&letter(To::Topic, 0), &missing));
        assert!(!may_be_cause(&letter(To::Inbox, 0), &missing));
        let large =
            Fault::Precondition("message size 9 is larger than configured max size 5".into());
        assert!(may_be_cause(&letter(To::Topic, 6), &large));
        assert!(!may_be_cause(&letter(To::Topic, 5), &large));
        assert!(!may_be_cause(&letter(To::Topic, 9), &Fault::Gone("reset".into())));
    }
}
