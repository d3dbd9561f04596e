-- Append one block: every check, then the writes (docs/formats.md, "Append script").
--
-- KEYS  1 m  2 log  3 c:<conversation>  4 h:<bucket>  5 p:<producer>  6 i:now  7 i:prev  (one slot)
-- ARGV  1 format  2 incarnation  3 conversation_id  4 head field  5 block number
--       6 expected_seq or ''  7 lines  8 a  9 z  10 u  11 w  12 x  13 d
--       14 clock ahead max µs  15 unsettled bytes max  16 log entries max  17 cache window ms
--       18 id window µs  19 ids max  20.. pairs: ordinal, id field
local meta = redis.call('HMGET', KEYS[1], 'format', 'inc', 'run', 'era', 'N', 'B', 'sB', 'oB', 'prev')
if not meta[3] or meta[3] ~= string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') then
  return {'UNCONFIRMED'}
end
if meta[1] ~= ARGV[1] then return {'FORMAT', meta[1]} end
if meta[2] ~= ARGV[2] then return {'INC', meta[2], meta[9] or ''} end
local era = tonumber(meta[4])

local number = tonumber(ARGV[5])
local slot = string.format('%d', number % 16)
local taken = redis.call('HMGET', KEYS[5], 'last', slot)
local last = tonumber(taken[1] or '0')
if number <= last then
  local known, first, skips = string.match(taken[2] or '', '^(%d+) (%d+) (.*)$')
  if known == ARGV[5] then return {'DUP', first, '', meta[5], meta[4], skips} end
  return {'OLD', taken[1], meta[4]}
end
if number > last + 1 then return {'GAP', taken[1] or '0', meta[4]} end

local head = redis.call('HGET', KEYS[4], ARGV[4])
local seq, head_era = 0, 0
if head then
  local s, e = string.match(head, '^(%d+)%.?(%d*)$')
  seq, head_era = tonumber(s), tonumber(e) or 0
end
if ARGV[6] ~= '' and tonumber(ARGV[6]) ~= seq then
  return {'CONFLICT', string.format('%.0f', seq), meta[4]}
end
if head_era < era then seq = seq + (era - head_era) * 1000000 end

local lines = tonumber(ARGV[7])
local skip, skips = {}, {}            -- ordinals; 'ordinal:seq' of the first copy
local fresh = {}                      -- id field, ordinal of ids that are new
local now_begun
if #ARGV > 19 then
  local fields = {'#'}
  for i = 20, #ARGV, 2 do fields[#fields + 1] = ARGV[i + 1] end
  local now_ids = redis.call('HMGET', KEYS[6], unpack(fields))
  local prev_ids = redis.call('HMGET', KEYS[7], unpack(fields))
  now_begun = now_ids[1]
  local here = {}
  local passed, upto = 0, 0           -- skipped ordinals below the one looked at
  for i = 2, #fields do
    local ordinal = tonumber(ARGV[16 + 2 * i])
    local seen = now_ids[i] or prev_ids[i] or here[fields[i]]
    if seen then
      skip[#skip + 1] = ARGV[16 + 2 * i]
      skips[#skips + 1] = ARGV[16 + 2 * i] .. ':' .. seen
      passed = passed + 1
    else
      local own = string.format('%.0f', seq + 1 + ordinal - passed)
      here[fields[i]] = own
      fresh[#fresh + 1] = fields[i]
      fresh[#fresh + 1] = own
    end
  end
end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local t = string.format('%.0f', now)
if tonumber(ARGV[9]) > now + tonumber(ARGV[14]) then return {'CLOCK', t, meta[4]} end

local bytes = tonumber(meta[6]) + #ARGV[13]
if bytes - tonumber(meta[7]) + tonumber(meta[8]) > tonumber(ARGV[15])
    or redis.call('XLEN', KEYS[2]) >= tonumber(ARGV[16]) then
  return {'BUSY', '0', meta[4]}
end

local n = lines - #skip
local first = string.format('%.0f', seq + 1)
local skips_text = table.concat(skips, ',')
local N, id = meta[5], ''
if n > 0 then
  N = string.format('%.0f', tonumber(N) + n)
  local B = string.format('%.0f', bytes)
  local k = table.concat(skip, ',')
  local events = tostring(n)
  local signed = {}
  for _, value in ipairs({ARGV[3], first, events, N, B, t, k, ARGV[12]}) do
    signed[#signed + 1] = #value .. ':' .. value
  end
  local y = string.sub(redis.sha1hex(table.concat(signed)), 1, 16)
  local entry = {'c', ARGV[3], 's', first, 'n', events, 'N', N, 'B', B, 't', t, 'a', ARGV[8], 'z', ARGV[9],
    'u', ARGV[10], 'w', ARGV[11], 'x', ARGV[12], 'v', '1', 'd', ARGV[13], 'y', y}
  if k ~= '' then
    entry[#entry + 1] = 'k'
    entry[#entry + 1] = k
  end
  id = redis.call('XADD', KEYS[2], '*', unpack(entry))
  redis.call('HSET', KEYS[1], 'N', N, 'B', B, 'L', id)
  local head_value = string.format('%.0f', seq + n)
  if era > 0 then head_value = head_value .. '.' .. meta[4] end
  redis.call('HSET', KEYS[4], ARGV[4], head_value)
  redis.pcall('XADD', KEYS[3], 'MAXLEN', '~', '1000', id, 's', first)   -- a cache: never fails the append
  redis.call('PEXPIRE', KEYS[3], ARGV[17])
end
redis.call('HSET', KEYS[5], 'last', ARGV[5], slot, ARGV[5] .. ' ' .. first .. ' ' .. skips_text)
redis.call('EXPIRE', KEYS[5], 604800)
if #fresh > 0 then
  if now_begun and (now - tonumber(now_begun) >= tonumber(ARGV[18])
      or redis.call('HLEN', KEYS[6]) > tonumber(ARGV[19])) then
    redis.call('RENAME', KEYS[6], KEYS[7])
    now_begun = false
  end
  if not now_begun then redis.call('HSET', KEYS[6], '#', t) end
  redis.call('HSET', KEYS[6], unpack(fresh))
  local keep_ms = string.format('%.0f', math.ceil(tonumber(ARGV[18]) / 1000) * 2)
  redis.call('PEXPIRE', KEYS[6], keep_ms)
  redis.call('PEXPIRE', KEYS[7], keep_ms)
end
return {'OK', first, id, N, meta[4], skips_text}
