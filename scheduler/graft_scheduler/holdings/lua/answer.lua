-- Say how far a wish is, unless another has taken its place; without a new value it is forgotten.
-- KEYS: the host's wishes, its events
-- ARGV: model, id of the wish, its new value (JSON) or '', seconds it is remembered, name of an event or '',
--       its data (JSON)
-- Returns 1, or 0 when the host is asked for something else by now.
local wish = redis.call('HGET', KEYS[1], ARGV[1])
if not wish or cjson.decode(wish).id ~= ARGV[2] then
  return 0
end
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
  redis.call('EXPIRE', KEYS[1], ARGV[4])
end
if ARGV[5] ~= '' then
  local time = redis.call('TIME')
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', 200, '*', 'at',
    string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)), 'name', ARGV[5], 'data', ARGV[6])
  redis.call('EXPIRE', KEYS[2], ARGV[4])
end
return 1
