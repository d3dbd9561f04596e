-- A conversation's head, where its newest blocks are, and the first of them, so that who follows it asks once.
-- A script, not MULTI: a full Redis refuses to queue even reads.
--
-- KEYS  1 heads  2 m  3 pointers  4 log
-- ARGV  1 field of the head  2 position that is known, or '-'  3 events wanted  4 entries at most  5 bytes of payload, about
-- Answers {head, {inc, era, T}, joined, {position, …}, {entry, …}}, newest first: the positions of blocks with as many events as
-- are wanted, or up to the known one; then `joined` is 1. Entries are those at the first positions, up to one that is trimmed away or
-- so many bytes: while a script runs everybody waits, and Lua copies what it reads.
local head = redis.call('HGET', KEYS[1], ARGV[1])
local meta = redis.call('HMGET', KEYS[2], 'inc', 'era', 'T')
if not head then return {false, meta, 0, {}, {}} end

local oldest = tonumber(string.match(head, '^%d+')) - tonumber(ARGV[3]) + 1
local positions, entries, most, room = {}, {}, tonumber(ARGV[4]), tonumber(ARGV[5])
for i, pointer in ipairs(redis.call('XREVRANGE', KEYS[3], '+', ARGV[2], 'COUNT', ARGV[3])) do
  if pointer[1] == ARGV[2] then return {head, meta, 1, positions, entries} end
  positions[i] = pointer[1]
  if i <= most and room > 0 then
    local entry = redis.call('XRANGE', KEYS[4], pointer[1], pointer[1])[1]
    entries[i] = entry
    room = entry and room - #(entry[2][26] or '') or 0
  end
  if tonumber(pointer[2][2]) <= oldest then break end
end
return {head, meta, 0, positions, entries}
