-- Make a group in one shard unless it is there.
--
-- KEYS  1 m  2 g (names)  3 g:<group>
-- ARGV  1 group  2 made id  3 at  4 us  5 seq  6 from us  7 N or ''
-- Answers the made id of the group that is there now.
local call = redis.call
local made = call('HGET', KEYS[3], 'made')
if made then return made end
local N = ARGV[7]
if N == '' then N = call('HGET', KEYS[1], 'N') or '0' end
local time = call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
call('HSET', KEYS[3], 'made', ARGV[2], 'at', ARGV[3], 'off', '0', 'us', ARGV[4], 'seq', ARGV[5], 'from', ARGV[6], 'N', N, 'seen', now)
call('SADD', KEYS[2], ARGV[1])
return ARGV[2]
