-- Change a study's state, if it is in one of those that this may follow and, for the driver, if it leads.
-- KEYS: the record, the studies at work, list that wakes the driver, who leads
-- ARGV: number of the study, new state, JSON list of states before, '' or who must lead, why, 1 if it is at
--       work then, 1 if it has ended then, then more fields and values of the record
-- Returns the state before, or '' when there is no such study or another leads.
local before = redis.call('HGET', KEYS[1], 'state')
if not before or (ARGV[4] ~= '' and redis.call('GET', KEYS[4]) ~= ARGV[4]) then
  return ''
end
local follows = false
for _, one in ipairs(cjson.decode(ARGV[3])) do
  follows = follows or one == before
end
if follows then
  local time = redis.call('TIME')
  local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
  redis.call('HSET', KEYS[1], 'state', ARGV[2], 'why', ARGV[5], 'ended_at', ARGV[7] == '1' and now or '',
    unpack(ARGV, 8))
  if ARGV[6] == '1' then
    redis.call('ZADD', KEYS[2], ARGV[1], ARGV[1])
    redis.call('LPUSH', KEYS[3], 1)
    redis.call('LTRIM', KEYS[3], 0, 0)
  else
    redis.call('ZREM', KEYS[2], ARGV[1])
  end
end
return before
