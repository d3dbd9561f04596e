-- Write fields of a shard's m. XTRIM comes first and drops nothing: after it a full Redis allows HSET too.
--
-- KEYS  1 m  2 log
-- ARGV  pairs: field, value
redis.call('XTRIM', KEYS[2], 'MINID', '0-0')
return redis.call('HSET', KEYS[1], unpack(ARGV))
