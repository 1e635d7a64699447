//! The decision, which must happen at the server in one piece.

use std::sync::LazyLock;

use redis::Script;

/// Takes up to so many calls of what a key may have, and yields how many, and after how many
/// microseconds there is another one.
///
/// The generic cell rate algorithm (ITU-T I.371), as `antiphon_resilience::RateSettings::take` has it,
/// for several calls at once. The value of the key is the time at which a steady stream of calls would
/// have used up what was let in, in microseconds of the server's clock: who asks brings no time along,
/// so clocks of instances that differ do no harm. Redis runs a script alone, and sends replicas what it
/// wrote and not the script, so `TIME` may be asked in it (from Redis 5 on).
///
/// The key lives as long as it is used up: after that it would say nothing more than no key.
///
/// Key: the limit. Arguments: the time between two calls of a steady stream in µs, which may be a part
/// of one; the calls that may come at once; how many are wanted.
pub(crate) static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local time = redis.call('TIME')
         local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
         local interval, burst, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
         local used_up = tonumber(redis.call('GET', KEYS[1]) or '0') or 0
         -- No more than this rate can have let in: there may have been a slower one before.
         local ahead = math.min(math.max(used_up - now, 0), interval * burst)
         -- A thousandth of a call, since a part of a microsecond may be lost in sums.
         local fit = math.floor((interval * burst - ahead) / interval + 0.001)
         local granted = math.max(math.min(wanted, fit), 0)
         if granted > 0 then
           ahead = ahead + granted * interval
           local life = math.min(math.ceil(ahead / 1000), 3000000000000)
           redis.call('SET', KEYS[1], string.format('%.2f', now + ahead), 'PX', life)
         end
         local wait = math.max(math.ceil(ahead + interval - interval * burst), 0)
         return {granted, math.min(wait, 3000000000000000)}",
    )
});
