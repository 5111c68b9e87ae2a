-- Ask a host to do something with a model; takes the place of what it was asked before.
-- KEYS: the host's wishes, its events
-- ARGV: model, the wish (JSON), seconds it is remembered, name of the event, its data (JSON)
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', 200, '*', 'at',
  string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)), 'name', ARGV[4], 'data', ARGV[5])
redis.call('EXPIRE', KEYS[2], ARGV[3])
return 1
