//! What must happen at the server in one piece. All of it goes by the server's clock.

use std::sync::LazyLock;

use redis::Script;

const NOW: &str = "local t = redis.call('TIME')\n\
                   local now = t[1] * 1000 + math.floor(t[2] / 1000)\n";

/// Also when the memory is full: these are what frees it, by letting consumers go on.
const ALLOWED: &str = "#!lua flags=allow-oom\n";

fn script(text: &str) -> Script {
    Script::new(&format!("{ALLOWED}{NOW}{text}"))
}

/// A sign of life of a member of a group that reads in any order. What belongs to consumers that are
/// no members any more is given back for others.
///
/// Keys: members, then stream and back of each topic. Arguments: group, member, lease in ms.
pub(crate) static ALIVE: LazyLock<Script> = LazyLock::new(|| {
    script(
        "redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[2])
         redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
         for k = 2, #KEYS, 2 do
           local consumers = redis.call('XINFO', 'CONSUMERS', KEYS[k], ARGV[1])
           for _, consumer in ipairs(consumers) do
             local name, pending = consumer[2], consumer[4]
             if not redis.call('ZSCORE', KEYS[1], name) then
               if pending == 0 then
                 redis.call('XGROUP', 'DELCONSUMER', KEYS[k], ARGV[1], name)
               else
                 local from = '-'
                 local more = true
                 while more do
                   local held = redis.call('XPENDING', KEYS[k], ARGV[1], from, '+', 500, name)
                   for _, one in ipairs(held) do
                     redis.call('ZADD', KEYS[k + 1], 'NX', now, one[1])
                     from = '(' .. one[1]
                   end
                   more = #held == 500
                 end
               end
             end
           end
         end
         return 1",
    )
});

/// Gives messages back.
///
/// Keys: back, attempts. Arguments: id, delay in ms, attempts in all or -1 when they do not change;
/// and again.
pub(crate) static GIVE_BACK: LazyLock<Script> = LazyLock::new(|| {
    script(
        "for a = 1, #ARGV, 3 do
           redis.call('ZADD', KEYS[1], now + ARGV[a + 1], ARGV[a])
           if tonumber(ARGV[a + 2]) >= 0 then
             redis.call('HSET', KEYS[2], ARGV[a], ARGV[a + 2])
           end
         end
         return 1",
    )
});

/// Takes messages that were given back and are due. Yields them with their attempts, and when the next
/// is due, in ms, or -1.
///
/// Keys: stream, back, attempts. Arguments: group, member, how many.
pub(crate) static TAKE_BACK: LazyLock<Script> = LazyLock::new(|| {
    script(
        "local taken = {}
         local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[3])
         for _, id in ipairs(due) do
           redis.call('ZREM', KEYS[2], id)
           local claimed = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id)
           if claimed[1] then
             local attempts = redis.call('HGET', KEYS[3], id)
             taken[#taken + 1] = {claimed[1], attempts or '0'}
           end
         end
         local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
         local next = -1
         if first[2] then next = math.max(0, first[2] - now) end
         return {taken, next}",
    )
});

/// A sign of life of a member of an ordered group; renews its leases. Yields the members, and who owns
/// each lane, empty for nobody.
///
/// Keys: members, then the lease of each lane. Arguments: member, lease in ms.
pub(crate) static ROSTER: LazyLock<Script> = LazyLock::new(|| {
    script(
        "redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
         redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
         local owners = {}
         for k = 2, #KEYS do
           local owner = redis.call('GET', KEYS[k]) or ''
           if owner == ARGV[1] then redis.call('PEXPIRE', KEYS[k], ARGV[2]) end
           owners[#owners + 1] = owner
         end
         return {redis.call('ZRANGE', KEYS[1], 0, -1), owners}",
    )
});

/// Takes a lane that nobody has; yields how far it is, by topic, or nothing.
///
/// Keys: lease, lane. Arguments: member, lease in ms.
pub(crate) static TAKE_LANE: LazyLock<Script> = LazyLock::new(|| {
    script(
        "if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
           return redis.call('HGETALL', KEYS[2])
         end
         return false",
    )
});

/// Writes how far lanes are that a member still owns, and lets go of them if it says so. Yields for
/// each lane whether it did.
///
/// Keys: lease and lane of each. Arguments: member, whether to let go, then for each lane the number
/// of topics, and each with how far it is.
pub(crate) static WRITE_LANES: LazyLock<Script> = LazyLock::new(|| {
    script(
        "local a = 3
         local done = {}
         for k = 1, #KEYS, 2 do
           local owned = redis.call('GET', KEYS[k]) == ARGV[1]
           local count = tonumber(ARGV[a])
           a = a + 1
           for _ = 1, count do
             if owned then redis.call('HSET', KEYS[k + 1], ARGV[a], ARGV[a + 1]) end
             a = a + 2
           end
           if owned and ARGV[2] == '1' then redis.call('DEL', KEYS[k]) end
           done[#done + 1] = owned and 1 or 0
         end
         return done",
    )
});

/// Counts the entries of a stream by lane, a part at a time: yields where it stopped, or nothing when
/// it is through, and for each lane how many lie above its floor.
///
/// Keys: stream. Arguments: after which id, how many, then the floor of each lane as milliseconds and
/// number.
pub(crate) static COUNT: LazyLock<Script> = LazyLock::new(|| {
    script(
        "local from = ARGV[1]
         local entries = redis.call('XRANGE', KEYS[1], '(' .. from, '+', 'COUNT', ARGV[2])
         local counts = {}
         local lanes = (#ARGV - 2) / 2
         for lane = 1, lanes do counts[lane] = 0 end
         for _, entry in ipairs(entries) do
           local lane = nil
           for f = 1, #entry[2], 2 do
             if entry[2][f] == 'lane' then lane = tonumber(entry[2][f + 1]) end
           end
           if lane and lane < lanes then
             local ms, number = string.match(entry[1], '(%d+)-(%d+)')
             ms, number = tonumber(ms), tonumber(number)
             local floor_ms = tonumber(ARGV[3 + lane * 2])
             local floor_number = tonumber(ARGV[4 + lane * 2])
             if ms > floor_ms or (ms == floor_ms and number > floor_number) then
               counts[lane + 1] = counts[lane + 1] + 1
             end
           end
         end
         local last = false
         if #entries == tonumber(ARGV[2]) then last = entries[#entries][1] end
         return {last, counts}",
    )
});
