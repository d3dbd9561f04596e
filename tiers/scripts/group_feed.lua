-- Give a group events of one shard that its log does not have any more; they are due at once.
--
-- KEYS  1 g:<group>  2 gp  3 go  4 gd
-- ARGV  1 us  2 seq (where the caller saw the group)  3 pending max  4 everything up to this us is among those given, or was
--       5 id in the log to go on after, or ''  6.. triples: us, seq, conversation, ascending by (us, seq)
-- Answers how many were taken: all, or as many as there is room for; -1 when the group is somewhere else by now.
local call = redis.call
local state = call('HMGET', KEYS[1], 'us', 'seq', 'N', 'at')
if state[1] ~= ARGV[1] or state[2] ~= ARGV[2] then return -1 end
local room, taken, us, seq = tonumber(ARGV[3]) - call('ZCARD', KEYS[2]), 0, ARGV[1], ARGV[2]
for i = 6, #ARGV, 3 do
  if taken >= room then break end
  local name = ARGV[i + 1] .. ' ' .. ARGV[i + 2]
  call('ZADD', KEYS[2], 0, name)
  call('HSET', KEYS[4], name, '0 - - ')
  taken, us, seq = taken + 1, ARGV[i], ARGV[i + 1]
end
call('HSET', KEYS[1], 'N', string.format('%.0f', tonumber(state[3]) + taken))
if taken == (#ARGV - 5) / 3 then
  if tonumber(ARGV[4]) >= tonumber(us) then us, seq = ARGV[4], '9007199254740991' end
  if ARGV[5] ~= '' then call('HSET', KEYS[1], 'at', ARGV[5], 'off', '0') end
end
call('HSET', KEYS[1], 'us', us, 'seq', seq)
return taken
