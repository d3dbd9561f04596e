-- Append one block: every check, then the writes (docs/formats.md, "Append script").
--
-- KEYS  1 m  2 log  3 c:<conversation>  4 h:<bucket>  5 p:<producer>  6 i:now  7 i:prev  (one slot)
-- ARGV  1 format  2 incarnation  3 conversation_id  4 head field  5 block number
--       6 expected_seq or ''  7 lines  8 a  9 z  10 u  11 w  12 x  13 d
--       14 clock ahead max µs  15 unsettled bytes max  16 log entries max  17 cache window ms
--       18 id window µs  19 ids max  20.. pairs: ordinal, id field
local call, format = redis.call, string.format   -- and no functions of our own: making them takes time in every call
local meta = call('HMGET', KEYS[1], 'format', 'inc', 'run', 'era', 'N', 'B', 'sB', 'oB', 't')
if not meta[3] or not string.find(call('INFO', 'server'), 'run_id:' .. meta[3] .. '\r', 1, true) then
  return {'UNCONFIRMED'}
end
if meta[1] ~= ARGV[1] then return {'FORMAT', meta[1]} end
if meta[2] ~= ARGV[2] then return {'INC', meta[2], call('HGET', KEYS[1], 'prev') or ''} end
local era = tonumber(meta[4])

local number = tonumber(ARGV[5])
local slot = number % 16
local taken = call('HMGET', KEYS[5], 'last', slot)
local last = tonumber(taken[1] or '0')
if number <= last then
  local known, first, skips = string.match(taken[2] or '', '^(%d+) (%d+) (.*)$')
  if known == ARGV[5] and first == '0' then return {'VOID', ARGV[5], meta[4]} end   -- see void.lua
  if known == ARGV[5] then return {'DUP', first, '', meta[5], meta[4], skips} end
  return {'OLD', taken[1], meta[4]}
end
if number > last + 1 then return {'GAP', taken[1] or '0', meta[4]} end

local head = call('HGET', KEYS[4], ARGV[4])
local seq, head_era = 0, 0
if head then
  local s, e = string.match(head, '^(%d+)%.?(%d*)$')
  seq, head_era = tonumber(s), tonumber(e) or 0
end
if ARGV[6] ~= '' and tonumber(ARGV[6]) ~= seq then return {'CONFLICT', format('%.0f', seq), meta[4]} end
if head_era < era then seq = seq + (era - head_era) * 1000000 end

local lines = tonumber(ARGV[7])
local skip, skips = {}, {}            -- ordinals; 'ordinal:seq' of the first copy
local fresh = {}                      -- id field, ordinal of ids that are new
local now_begun
if #ARGV > 19 then
  local fields = {'#'}
  for i = 20, #ARGV, 2 do fields[#fields + 1] = ARGV[i + 1] end
  local now_ids = call('HMGET', KEYS[6], unpack(fields))
  local prev_ids = call('HMGET', KEYS[7], unpack(fields))
  now_begun = now_ids[1]
  local here = {}
  local passed = 0                    -- skipped ordinals below the one looked at
  for i = 2, #fields do
    local ordinal = tonumber(ARGV[16 + 2 * i])
    local seen = now_ids[i] or prev_ids[i] or here[fields[i]]
    if seen then
      skip[#skip + 1] = ARGV[16 + 2 * i]
      skips[#skips + 1] = ARGV[16 + 2 * i] .. ':' .. seen
      passed = passed + 1
    else
      local own = format('%.0f', seq + 1 + ordinal - passed)
      here[fields[i]] = own
      fresh[#fresh + 1] = fields[i]
      fresh[#fresh + 1] = own
    end
  end
end

local time = call('TIME')
local t = time[1] .. format('%06d', time[2])
local now = tonumber(t)
if tonumber(ARGV[9]) > now + tonumber(ARGV[14]) then return {'CLOCK', t, meta[4]} end
-- Of a shard's blocks each is later than the one before, whatever the clock does: so t gives their order for ever.
if meta[9] and tonumber(meta[9]) >= now then t = format('%.0f', tonumber(meta[9]) + 1) end

local bytes = tonumber(meta[6]) + #ARGV[13]
if bytes - tonumber(meta[7]) + tonumber(meta[8]) > tonumber(ARGV[15])
    or call('XLEN', KEYS[2]) >= tonumber(ARGV[16]) then
  return {'BUSY', '0', meta[4]}
end

local n = lines - #skip
local first = format('%.0f', seq + 1)
local skips_text = table.concat(skips, ',')
local N, id = meta[5], ''
if n > 0 then
  N = format('%.0f', tonumber(N) + n)
  local B, c, events, x, k = format('%.0f', bytes), ARGV[3], tostring(n), ARGV[12], table.concat(skip, ',')
  local signed = #c .. ':' .. c .. #first .. ':' .. first .. #events .. ':' .. events .. #N .. ':' .. N
    .. #B .. ':' .. B .. #t .. ':' .. t .. #k .. ':' .. k .. #x .. ':' .. x
  local y = string.sub(redis.sha1hex(signed), 1, 16)
  local entry = {'c', c, 's', first, 'n', events, 'N', N, 'B', B, 't', t, 'a', ARGV[8], 'z', ARGV[9],
    'u', ARGV[10], 'w', ARGV[11], 'x', x, 'v', '1', 'd', ARGV[13], 'y', y}
  if k ~= '' then
    entry[#entry + 1] = 'k'
    entry[#entry + 1] = k
  end
  id = call('XADD', KEYS[2], '*', unpack(entry))
  call('HSET', KEYS[1], 'N', N, 'B', B, 'L', id, 't', t)
  local head_value = format('%.0f', seq + n)
  if era > 0 then head_value = head_value .. '.' .. meta[4] end
  call('HSET', KEYS[4], ARGV[4], head_value)
  redis.pcall('XADD', KEYS[3], 'MAXLEN', '~', '1000', id, 's', first)   -- a cache: never fails the append
  -- A key lives on for so long from now, or a tenth longer: to ask how long it has costs less than to say it anew each time.
  if call('PTTL', KEYS[3]) < tonumber(ARGV[17]) then call('PEXPIRE', KEYS[3], format('%.0f', ARGV[17] * 1.1)) end
end
call('HSET', KEYS[5], 'last', ARGV[5], slot, ARGV[5] .. ' ' .. first .. ' ' .. skips_text)
if call('PTTL', KEYS[5]) < 604800000 then call('PEXPIRE', KEYS[5], '665280000') end
if #fresh > 0 then
  if now_begun and (now - tonumber(now_begun) >= tonumber(ARGV[18])
      or call('HLEN', KEYS[6]) > tonumber(ARGV[19])) then
    call('RENAME', KEYS[6], KEYS[7])
    now_begun = false
  end
  if not now_begun then call('HSET', KEYS[6], '#', format('%.0f', now)) end
  call('HSET', KEYS[6], unpack(fresh))
  local keep_ms = format('%.0f', math.ceil(tonumber(ARGV[18]) / 1000) * 2)
  call('PEXPIRE', KEYS[6], keep_ms)
  call('PEXPIRE', KEYS[7], keep_ms)
end
return {'OK', first, id, N, meta[4], skips_text}
