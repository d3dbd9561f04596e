-- Lease events of one shard to a consumer of a group: first those whose time has come, then new ones of the log.
--
-- KEYS  1 m  2 log  3 g:<group>  4 gp (when each is due)  5 go (in which entry each is)  6 gd (what is known of each)  7 gk (parked)
-- ARGV  1 lease  2 events at most  3 ack wait ms  4 deliveries max  5 pending max  6 parked max
-- Answers {'NONE'} without the group, else {'OK', behind, ms until the next is due or '', parked now,
-- then of each event: entry, its name ('<seq> <conversation>'), deliveries before}. behind is 1 when the log was trimmed beyond
-- the group's place, so that what comes next is for group_feed.lua to say.
local call, format = redis.call, string.format
local state = call('HMGET', KEYS[3], 'at', 'off', 'us', 'seq', 'from', 'N', 'seen')
if not state[1] then return {'NONE'} end
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local limit, wait, most = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local parked_max = tonumber(ARGV[6])
if now - tonumber(state[7]) > 10000 or now < tonumber(state[7]) then call('HSET', KEYS[3], 'seen', format('%.0f', now)) end
local out, found, parked = {}, 0, 0

local due = call('ZRANGEBYSCORE', KEYS[4], '-inf', now, 'LIMIT', 0, limit)
for i = 1, #due do
  local name = due[i]
  local count, entry, reason = string.match(call('HGET', KEYS[6], name), '^(%d+) %S+ (%S+) ?(.*)$')
  if tonumber(count) >= most and call('HLEN', KEYS[7]) < parked_max then
    if reason == '' then reason = 'no answer from its consumer' end
    call('HSET', KEYS[7], name, count .. ' ' .. format('%.0f', now) .. ' ' .. entry .. ' ' .. reason)
    call('ZREM', KEYS[4], name)
    call('ZREM', KEYS[5], name)
    call('HDEL', KEYS[6], name)
    parked = parked + 1
  elseif tonumber(count) < most then
    call('ZADD', KEYS[4], now + wait, name)
    call('HSET', KEYS[6], name, count .. ' ' .. ARGV[1] .. ' ' .. entry .. ' ' .. reason)
    found = found + 1
    out[#out + 1] = entry
    out[#out + 1] = name
    out[#out + 1] = count
  else
    call('ZADD', KEYS[4], now + wait, name)     -- parked events are at their bound: it waits
  end
end

local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

local at, off, us, seq, N = state[1], tonumber(state[2]), state[3], state[4], state[6]
local pending, behind, moved = call('ZCARD', KEYS[4]), 0, false
while found < limit and pending < tonumber(ARGV[5]) do
  local trimmed_ms, trimmed_seq = parts(call('HGET', KEYS[1], 'T') or '0-0')
  local ms, place = parts(at)
  if trimmed_ms > ms or (trimmed_ms == ms and trimmed_seq > place) then
    behind = 1
    break
  end
  local entries = call('XRANGE', KEYS[2], format('%.0f-%.0f', ms, place + 1), '+', 'COUNT', 8)
  if #entries == 0 then break end
  for i = 1, #entries do
    local id, fields = entries[i][1], entries[i][2]
    local c, s, n, t, total
    for j = 1, #fields, 2 do
      local key, value = fields[j], fields[j + 1]
      if key == 'c' then c = value elseif key == 's' then s = tonumber(value) elseif key == 'n' then n = tonumber(value)
      elseif key == 't' then t = value elseif key == 'N' then total = tonumber(value) end
    end
    moved = true
    if tonumber(t) < tonumber(state[5]) then off = n end
    while off < n and found < limit and pending < tonumber(ARGV[5]) do
      local number = format('%.0f', s + off)
      local name = number .. ' ' .. c
      call('ZADD', KEYS[4], now + wait, name)
      call('ZADD', KEYS[5], (parts(id)), name)
      call('HSET', KEYS[6], name, '0 ' .. ARGV[1] .. ' ' .. id .. ' ')
      out[#out + 1] = id
      out[#out + 1] = name
      out[#out + 1] = '0'
      off, found, pending = off + 1, found + 1, pending + 1
      us, seq = t, number
    end
    N = format('%.0f', total - n + off)
    if off < n then break end
    at, off, us, seq = id, 0, t, format('%.0f', s + n - 1)
    if found >= limit then break end
  end
end
if moved then call('HSET', KEYS[3], 'at', at, 'off', off, 'us', us, 'seq', seq, 'N', N) end
local next_due = call('ZRANGE', KEYS[4], 0, 0, 'WITHSCORES')[2]
local next_ms = next_due and format('%.0f', math.max(0, tonumber(next_due) - now)) or ''
return {'OK', behind, next_ms, parked, unpack(out)}
