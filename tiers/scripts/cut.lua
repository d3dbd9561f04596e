-- All shards' counters at one instant. A script, not MULTI: a full Redis refuses to queue even reads.
--
-- KEYS  m, log of every shard     ARGV  fields of m
-- Answers {fields of m in order, XLEN log} per shard.
local answer = {}
for i = 1, #KEYS, 2 do
  local fields = redis.call('HMGET', KEYS[i], unpack(ARGV))
  fields[#ARGV + 1] = redis.call('XLEN', KEYS[i + 1])
  answer[#answer + 1] = fields
end
return answer
