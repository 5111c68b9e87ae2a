-- Cancel a job at once, or ask its runner to stop.
-- ARGV: job, who asks, request
-- Returns the state it was in.
local job = ARGV[1]
local before = answered(ARGV[3])
if before then
  return before
end
local state = redis.call('HGET', JOB, 'state')
local now = now_ms()
local data = cjson.encode({by = ARGV[2]})
if state == 'queued' or state == 'placed' then
  conclude(now, job, 'cancelled')
  event(now, job, 'cancelled', redis.call('HGET', JOB, 'token'), data)
elseif state == 'running' then
  redis.call('HSET', JOB, 'stop', 'cancel')
  event(now, job, 'cancelling', redis.call('HGET', JOB, 'token'), data)
end
return state and answer(ARGV[3], state)
