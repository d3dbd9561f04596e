-- Take parked events of one shard out: deliver them anew, or forget them.
--
-- KEYS  1 gp  2 go  3 gd  4 gk
-- ARGV  1 replay or discard  2.. names
-- Answers how many there were.
local call = redis.call
local count = 0
for i = 2, #ARGV do
  local name = ARGV[i]
  local known = call('HGET', KEYS[4], name)
  if known then
    if ARGV[1] == 'replay' then
      local entry = string.match(known, '^%d+ %d+ (%S+)')
      call('ZADD', KEYS[1], 0, name)
      call('HSET', KEYS[3], name, '0 - ' .. entry .. ' ')
    end
    call('HDEL', KEYS[4], name)
    count = count + 1
  end
end
return count
