//! Changes of a service's own tables.

/// One change of a service's own tables. The order in a service's list is the order of their
/// application; a migration that was released is never changed, moved or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    name: String,
    sql: String,
}

impl Migration {
    /// The statements `sql`, under a name that is unique in its service: `0001-orders`.
    #[must_use]
    pub fn new(name: impl Into<String>, sql: impl Into<String>) -> Self {
        Self { name: name.into(), sql: sql.into() }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The statements.
    #[must_use]
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// Whether the text is still what it was: FNV-1a, 64 bits; no protection from intent.
    #[must_use]
    pub fn checksum(&self) -> i64 {
        let hash = self.sql.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        hash.cast_signed()
    }
}
