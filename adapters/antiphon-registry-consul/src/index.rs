//! The index of a query that waits: what Consul's documentation asks of clients.

/// What to wait for next, after a query at `asked` (0: at once) was answered with `answered`.
///
/// An index that went backwards belongs to another history — a server was restarted without its data,
/// or a snapshot restored — and waiting for it would miss what happened since: the next query is
/// answered at once. An index of 0 would never wait, so it counts as 1.
pub(crate) fn next(asked: u64, answered: u64) -> u64 {
    let answered = answered.max(1);
    if answered < asked { 0 } else { answered }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_only_grows_or_begins_anew() {
        for (asked, answered, expected) in
            [(0, 7, 7), (7, 7, 7), (7, 9, 9), (9, 7, 0), (0, 0, 1), (1, 0, 1), (7, 0, 0)]
        {
            assert_eq!(next(asked, answered), expected, "{asked} {answered}");
        }
    }
}
