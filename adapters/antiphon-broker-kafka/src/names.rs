//! What topics and groups may be called, and how partitions become lanes.

/// The longest name of a topic.
const TOPIC_CHARS_MAX: usize = 249;
/// The longest name of a group that we use; Kafka itself takes more.
const GROUP_CHARS_MAX: usize = 249;
/// How many lanes each topic of a subscription has room for.
const LANES_PER_TOPIC: u32 = 1 << 16;

/// Topics of Kafka and of ours, which are not the users'.
pub(crate) fn is_internal(topic: &str) -> bool {
    topic.starts_with("__") || topic == ANSWERS
}

/// Where answers travel.
pub(crate) const ANSWERS: &str = "antiphon.answers";

/// Whether Kafka takes this name for a topic.
pub(crate) fn check_topic(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name == "." || name == ".." {
        Err(format!("`{name}` cannot be the name of a Kafka topic"))
    } else if name.len() > TOPIC_CHARS_MAX {
        Err(format!("topic `{name}`: Kafka takes at most {TOPIC_CHARS_MAX} characters"))
    } else if let Some(wrong) = name.chars().find(|c| !allowed(*c)) {
        Err(format!("topic `{name}`: Kafka takes letters, digits, `.`, `_` and `-`, not `{wrong}`"))
    } else {
        Ok(())
    }
}

/// Whether a group may be called so.
pub(crate) fn check_group(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > GROUP_CHARS_MAX || name.contains('\0') {
        Err(format!("group `{name}`: a name has 1 to {GROUP_CHARS_MAX} bytes"))
    } else {
        Ok(())
    }
}

/// The lane of a partition: its number, for a group that reads one topic. `topic` is the place of
/// the topic in the subscription.
pub(crate) fn lane(topic: usize, partition: i32) -> u32 {
    let topic = u32::try_from(topic).unwrap_or(0) % LANES_PER_TOPIC;
    topic * LANES_PER_TOPIC + u32::try_from(partition).unwrap_or(0) % LANES_PER_TOPIC
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_kafka_refuses_are_refused_with_the_reason() {
        for name in ["shop.orders", "a", "A_b-9", &"x".repeat(249)] {
            assert_eq!(check_topic(name), Ok(()), "{name}");
        }
        for name in ["", ".", "..", "a b", "größe", "a/b", "a:b", &"x".repeat(250)] {
            assert!(check_topic(name).is_err(), "{name}");
        }
    }

    #[test]
    fn lanes_of_topics_do_not_meet() {
        assert_eq!(lane(0, 7), 7);
        assert_ne!(lane(1, 7), lane(0, 7));
        assert_ne!(lane(1, 0), lane(0, 65_535));
    }
}
