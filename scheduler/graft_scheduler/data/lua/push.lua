-- Name a data set: a version of its own, or the one that holds the same already.
-- KEYS: sorted set of names, the data set
-- ARGV: name, digest, who pushes, what is known of it as JSON
-- Returns the number of the version, and 1 if it is new.
local NAMES, DATASET = KEYS[1], KEYS[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('HGET', DATASET, ARGV[2])
if known then
  return {tonumber(known), 0}
end
local number = redis.call('HINCRBY', DATASET, 'newest', 1)
redis.call('HSET', DATASET, ARGV[2], number, 'v' .. number, ARGV[4],
  'v' .. number .. ':at', string.format('%.0f', now), 'v' .. number .. ':by', ARGV[3])
redis.call('ZADD', NAMES, string.format('%.0f', now), ARGV[1])
return {number, 1}
