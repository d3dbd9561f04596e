-- What a consumer says of events of one shard.
--
-- KEYS  1 gp  2 go  3 gd  4 gk
-- ARGV  1 what: start, ack, nack, park, release, extend  2 lease  3 ms until it is due again  4 deliveries max  5 reason  6.. names
-- Answers a number for each: start: which delivery it is, 0 when the lease is over. Others: 1 when it was so, 0 when the event is
-- not pending any more, or is leased to another (an ack counts all the same).
local call, format = redis.call, string.format
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local what, answers = ARGV[1], {}

local function forget(name)
  call('ZREM', KEYS[1], name)
  call('ZREM', KEYS[2], name)
  call('HDEL', KEYS[3], name)
end

for i = 6, #ARGV do
  local name, answer = ARGV[i], 0
  local known = call('HGET', KEYS[3], name)
  if known then
    local count, lease, entry, reason = string.match(known, '^(%d+) (%S+) (%S+) ?(.*)$')
    if what == 'ack' then
      forget(name)
      answer = 1
    elseif lease == ARGV[2] then
      answer = 1
      if what == 'start' then
        answer = tonumber(count) + 1
        call('HSET', KEYS[3], name, format('%.0f', answer) .. ' ' .. lease .. ' ' .. entry .. ' ' .. reason)
        call('ZADD', KEYS[1], now + tonumber(ARGV[3]), name)
      elseif what == 'park' or (what == 'nack' and tonumber(count) >= tonumber(ARGV[4])) then
        call('HSET', KEYS[4], name, count .. ' ' .. format('%.0f', now) .. ' ' .. entry .. ' ' .. ARGV[5])
        forget(name)
      elseif what == 'extend' then
        call('ZADD', KEYS[1], now + tonumber(ARGV[3]), name)
      else
        if what == 'nack' then reason = ARGV[5] end
        call('HSET', KEYS[3], name, count .. ' - ' .. entry .. ' ' .. reason)
        call('ZADD', KEYS[1], now + tonumber(ARGV[3]), name)
      end
    end
  end
  answers[#answers + 1] = answer
end
return answers
