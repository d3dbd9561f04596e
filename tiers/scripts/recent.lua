-- The newest cached blocks of a conversation, by its pointers. Reads only.
--
-- KEYS  1 c:<conversation>  2 log  3 h:<bucket>
-- ARGV  1 head field  2 events wanted  3 bytes max
-- Answers {head or '', entry, entry, …}, newest first, each as XRANGE gives it.
local answer = {redis.call('HGET', KEYS[3], ARGV[1]) or ''}
local wanted, room = tonumber(ARGV[2]), tonumber(ARGV[3])
local before = '+'
while wanted > 0 and room > 0 do
  local pointers = redis.call('XREVRANGE', KEYS[1], before, '-', 'COUNT', '64')
  if #pointers == 0 then break end
  for _, pointer in ipairs(pointers) do
    local entry = redis.call('XRANGE', KEYS[2], pointer[1], pointer[1])[1]
    if not entry or wanted <= 0 or room <= 0 then return answer end
    answer[#answer + 1] = entry
    for i = 1, #entry[2], 2 do
      if entry[2][i] == 'n' then wanted = wanted - tonumber(entry[2][i + 1]) end
      if entry[2][i] == 'd' then room = room - #entry[2][i + 1] end
    end
  end
  local ms, seq = string.match(pointers[#pointers][1], '^(%d+)-(%d+)$')
  if seq == '0' then
    before = string.format('%.0f', tonumber(ms) - 1)
  else
    before = ms .. '-' .. string.format('%.0f', tonumber(seq) - 1)
  end
end
return answer
