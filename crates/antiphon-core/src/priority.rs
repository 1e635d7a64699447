//! Which calls go first when there is not enough for all.
//!
//! Four classes, after the criticality of Google's SRE book ("Handling Overload"). Each may fill
//! another part of a server's limits, so the lower ones are refused while there is still room for
//! the higher ones. Administration, health and reflection are in no class: they are answered
//! whatever the load. What a call does for its answer has the class of the call, through every
//! service that it passes ([`Context::priority`](crate::Context::priority)).

/// How much it matters that a call is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Nobody waits for it: synthetic checks, hedges.
    Probe,
    /// It can be done later: batches, refreshing of caches.
    Sheddable,
    /// What a call is that says nothing.
    #[default]
    Default,
    /// What is refused only when nothing else helps.
    Critical,
}

impl Priority {
    /// From its name in metadata (`x-priority`). Whose word a server takes for it is for the server
    /// to know.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Probe, Self::Sheddable, Self::Default, Self::Critical]
            .into_iter()
            .find(|priority| priority.name() == name)
    }

    /// The name in metadata.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Sheddable => "sheddable",
            Self::Default => "default",
            Self::Critical => "critical",
        }
    }

    /// How many calls may be in progress, this one included, when it is let in: half, 0.7, all or 1.2
    /// of the limit, at least one.
    #[must_use]
    pub const fn places(self, limit: u32) -> u32 {
        let tenths = match self {
            Self::Probe => 5,
            Self::Sheddable => 7,
            Self::Default => return if limit == 0 { 1 } else { limit },
            Self::Critical => 12,
        };
        // In two parts, which cannot overflow but where all places are meant anyway.
        let places = (limit / 10).saturating_mul(tenths).saturating_add(limit % 10 * tenths / 10);
        if places == 0 { 1 } else { places }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_the_class_the_sooner_it_is_refused() {
        use Priority::{Critical, Default, Probe, Sheddable};
        let places = |limit| [Probe, Sheddable, Default, Critical].map(|one| one.places(limit));
        assert_eq!(places(100), [50, 70, 100, 120]);
        assert_eq!(places(25), [12, 17, 25, 30]);
        assert_eq!(places(1), [1, 1, 1, 1]);
        assert_eq!(places(0), [1, 1, 1, 1]);
        assert_eq!(places(u32::MAX), [2_147_483_647, 3_006_477_106, u32::MAX, u32::MAX]);
    }

    #[test]
    fn names_are_those_of_the_classes() {
        for name in ["probe", "sheddable", "default", "critical"] {
            assert_eq!(Priority::from_name(name).map(Priority::name), Some(name));
        }
        assert_eq!(Priority::from_name("CRITICAL"), None);
        assert_eq!(Priority::default(), Priority::Default);
    }
}
