-- Accept a study: its name, its record and its place among those at work, in one step.
-- KEYS: hash of names, the record, the studies at work, list that wakes the driver
-- ARGV: name, number of the study, then fields and values of the record
-- Returns 1, or 0 when another study has the name.
redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2])
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('HSET', KEYS[2], 'number', ARGV[2], 'name', ARGV[1], 'state', 'active', 'created_at', now, unpack(ARGV, 3))
redis.call('ZADD', KEYS[3], ARGV[2], ARGV[2])
redis.call('LPUSH', KEYS[4], 1)
redis.call('LTRIM', KEYS[4], 0, 0)
return 1
