//! What must happen at the server in one piece.
//!
//! A key's hash has the fields `lease`, `stale` (how many milliseconds of its life are after its
//! freshness; there when something is stored) and `value` (not there when it is known that there is
//! none). The end of its life is the end of the hash, so there are no clocks to compare.

use std::sync::LazyLock;

use redis::Script;

/// Yields the lease, and if something is stored the rest of its life in ms, how much of that is stale,
/// and the value. A key that is not there gets the offered lease. Who is about to load gets the full
/// time for it.
///
/// Key: the hash. Arguments: a new lease, how long a load may take in ms.
pub(crate) static READ: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local known = redis.call('HMGET', KEYS[1], 'lease', 'stale', 'value')
         if known[2] then
           return {known[1], redis.call('PTTL', KEYS[1]), known[2], known[3]}
         end
         local lease = known[1]
         if not lease then
           lease = ARGV[1]
           redis.call('HSET', KEYS[1], 'lease', lease)
         end
         redis.call('PEXPIRE', KEYS[1], ARGV[2])
         return {lease}",
    )
});

/// Stores a value, or that there is none, if the lease is still the key's. Yields whether it is.
///
/// Key: the hash. Arguments: lease, its life in ms, how much of that is stale, and the value if there is
/// one.
pub(crate) static FILL: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('HGET', KEYS[1], 'lease') ~= ARGV[1] then return 0 end
         if ARGV[4] then
           redis.call('HSET', KEYS[1], 'stale', ARGV[3], 'value', ARGV[4])
         else
           redis.call('HSET', KEYS[1], 'stale', ARGV[3])
           redis.call('HDEL', KEYS[1], 'value')
         end
         redis.call('PEXPIRE', KEYS[1], ARGV[2])
         return 1",
    )
});

/// Removes keys, and tells everybody. A script and no transaction, since this must also work when the
/// memory is full, and Redis then refuses whatever is queued for a transaction.
///
/// Keys: the hashes. Arguments: channel, message.
pub(crate) static INVALIDATE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "#!lua flags=allow-oom
         for _, key in ipairs(KEYS) do redis.call('UNLINK', key) end
         redis.call('PUBLISH', ARGV[1], ARGV[2])
         return 1",
    )
});
