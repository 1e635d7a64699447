//! What topics, groups and lanes are called at the server.
//!
//! A topic is an exchange of its name, a group that is read in any order a queue of its name. An
//! ordered group is as many queues as it has lanes: `billing.charge.L0`, `billing.charge.L1`, ….
//!
//! The routing key of a message is the number of its lane in binary, lowest digit first: `1.0.1.1`
//! for 13. So one binding is enough for a queue that takes a half, a quarter, … of the lanes: lane 1
//! of 4 is `1.0.#`.

use antiphon_messaging::LANES;

/// The longest name of a topic or group, in bytes; AMQP has 255, and we add to them.
const NAME_BYTES_MAX: usize = 200;

/// What addresses of inboxes begin with.
pub(crate) const INBOX: &str = "antiphon.inbox.";

/// What the queues begin with by which the members of a group hear of each other.
pub(crate) const MEMBER: &str = "antiphon.member.";

/// Where it is kept which topics and groups were declared.
pub(crate) const REGISTRY: &str = "antiphon.registry";

/// The routing key of each lane.
const ROUTES: [&str; LANES as usize] = [
    "0.0.0.0", "1.0.0.0", "0.1.0.0", "1.1.0.0", "0.0.1.0", "1.0.1.0", "0.1.1.0", "1.1.1.0",
    "0.0.0.1", "1.0.0.1", "0.1.0.1", "1.1.0.1", "0.0.1.1", "1.0.1.1", "0.1.1.1", "1.1.1.1",
];

/// The routing key of a lane of a topic.
pub(crate) fn route(lane: u32) -> &'static str {
    ROUTES[(lane % LANES) as usize]
}

/// What binds a queue to all messages of a topic.
pub(crate) const EVERYTHING: &str = "#";

/// What binds the queue of lane `lane` of `lanes` to its messages.
pub(crate) fn pattern(lane: u32, lanes: u32) -> String {
    let digits = lanes.trailing_zeros() as usize;
    if digits == 0 {
        return EVERYTHING.to_owned();
    }
    match route(lane).get(..digits * 2) {
        Some(prefix) => format!("{prefix}#"),
        // All digits count.
        None => route(lane).to_owned(),
    }
}

/// The queue of a lane of an ordered group.
pub(crate) fn lane_queue(group: &str, lane: u32) -> String {
    format!("{group}.L{lane}")
}

/// The exchange by which the members of an ordered group hear of each other.
pub(crate) fn members_exchange(group: &str) -> String {
    format!("{group}.members")
}

/// What is wrong with the name of a topic or group.
pub(crate) fn check(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("it is empty".to_owned());
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(format!("it is longer than {NAME_BYTES_MAX} bytes"));
    }
    if name.contains(char::is_control) {
        return Err("it has control characters".to_owned());
    }
    if name.starts_with("amq.") || name.starts_with("antiphon.") {
        return Err("names that begin with `amq.` or `antiphon.` are taken".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, route: &str) -> bool {
        match pattern.strip_suffix('#') {
            Some(prefix) => route.starts_with(prefix),
            None => pattern == route,
        }
    }

    #[test]
    fn every_lane_goes_to_exactly_one_queue() {
        for lanes in [1, 2, 4, 8, 16] {
            for lane in 0..LANES {
                let to: Vec<u32> =
                    (0..lanes).filter(|n| matches(&pattern(*n, lanes), route(lane))).collect();
                assert_eq!(to, [lane % lanes], "lane {lane} of {lanes}");
            }
        }
        assert_eq!(pattern(1, 4), "1.0.#");
        assert_eq!(pattern(13, 16), "1.0.1.1");
    }

    #[test]
    fn names_that_the_server_would_not_take_are_refused() {
        for name in ["", "a\tb", "amq.topic", "antiphon.inbox.1", &"x".repeat(201)] {
            assert!(check(name).is_err(), "{name}");
        }
        assert_eq!(check("shop.orders"), Ok(()));
    }
}
