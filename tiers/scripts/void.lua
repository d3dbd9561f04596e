-- Say what became of blocks whose replies were lost, and use up the numbers of those that were not taken, so that they never
-- will be (docs/formats.md, "Void script"). The slot of a number used up so has the first seq 0.
--
-- KEYS  1 m  2 p:<producer>  (one slot)
-- ARGV  1 format  2 incarnation  3.. the numbers, ascending
local call = redis.call
local meta = call('HMGET', KEYS[1], 'format', 'inc', 'run', 'era', 'N')
if not meta[3] or not string.find(call('INFO', 'server'), 'run_id:' .. meta[3] .. '\r', 1, true) then
  return {{'UNCONFIRMED'}}
end
if meta[1] ~= ARGV[1] then return {{'FORMAT'}} end
if meta[2] ~= ARGV[2] then return {{'INC'}} end
local last = tonumber(call('HGET', KEYS[2], 'last') or '0')
local answers = {}
for i = 3, #ARGV do
  local number = tonumber(ARGV[i])
  local slot = number % 16
  if number <= last then
    local known, first, skips = string.match(call('HGET', KEYS[2], slot) or '', '^(%d+) (%d+) (.*)$')
    if known ~= ARGV[i] then
      answers[#answers + 1] = {'OLD', tostring(last), meta[4]}
    elseif first == '0' then
      answers[#answers + 1] = {'VOID', ARGV[i], meta[4]}
    else
      answers[#answers + 1] = {'DUP', first, '', meta[5], meta[4], skips}
    end
  elseif number > last + 1 then
    answers[#answers + 1] = {'GAP', tostring(last), meta[4]}
  else
    call('HSET', KEYS[2], 'last', ARGV[i], slot, ARGV[i] .. ' 0 ')
    call('PEXPIRE', KEYS[2], '665280000')
    last = number
    answers[#answers + 1] = {'VOID', ARGV[i], meta[4]}
  end
end
return answers
