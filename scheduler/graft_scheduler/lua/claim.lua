-- Take the assignment that was placed for this host under this token; once.
-- ARGV: job, token, host, boot id of the worker, lease ms, nonce of this claim
-- Returns the record's fields, or nothing when there is no such assignment (any more).
local job, token = ARGV[1], ARGV[2]
if holds(token, ARGV[6]) then
  return redis.call('HGETALL', JOB)
end
local held = redis.call('HMGET', JOB, 'state', 'token', 'host')
if held[1] ~= 'placed' or held[2] ~= token or held[3] ~= ARGV[3] then
  return {}
end
local now = now_ms()
redis.call('ZREM', PLACED, job)
redis.call('ZADD', LEASES, text(now + ARGV[5]), job)
redis.call('HSET', JOB, 'state', 'running', 'boot', ARGV[4], 'nonce', ARGV[6], 'started_at', text(now),
  'stop', '')
redis.call('HSET', HOST, 'missed_claims', 0, 'rests_until', '')
event(now, job, 'running', token, redis.call('HGET', JOB, 'assignment'))
return redis.call('HGETALL', JOB)
