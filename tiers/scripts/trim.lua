-- Drop what is settled from a log and tell the shard what is settled.
-- XTRIM comes first: Redis allows it when it is full, HSET it would refuse.
--
-- KEYS  1 m  2 log
-- ARGV  1 incarnation  2 last id to drop or ''  3 smallest id to keep or ''  4 sN  5 sB  6 oB
-- Answers {entries dropped}, or {-1} when the shard has another incarnation.
local meta = redis.call('HMGET', KEYS[1], 'inc', 'T', 'B', 'tB')
if meta[1] ~= ARGV[1] then return {-1} end

local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

local dropped, trimmed, trimmed_bytes = 0, meta[2], meta[4]
if ARGV[2] ~= '' then
  local old_ms, old_seq = parts(meta[2])
  local ms, seq = parts(ARGV[2])
  if ms > old_ms or (ms == old_ms and seq > old_seq) then
    dropped = redis.call('XTRIM', KEYS[2], 'MINID', ARGV[3])
    trimmed, trimmed_bytes = ARGV[2], meta[3]
    local first = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', '1')[1]
    if first then
      local total, size
      for i = 1, #first[2], 2 do
        if first[2][i] == 'B' then total = tonumber(first[2][i + 1]) end
        if first[2][i] == 'd' then size = #first[2][i + 1] end
      end
      trimmed_bytes = string.format('%.0f', total - size)
    end
  end
end
if dropped == 0 then redis.call('XTRIM', KEYS[2], 'MINID', '0-0') end
redis.call('HSET', KEYS[1], 'T', trimmed, 'tB', trimmed_bytes, 'sN', ARGV[4], 'sB', ARGV[5], 'oB', ARGV[6])
return {dropped}
