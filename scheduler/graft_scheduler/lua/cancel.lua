-- End a job at once, or ask its runner to stop.
-- ARGV: job, who asks, request, why (cancel|prune), the event of its end, the event of the question,
--       who must lead or ''
-- Returns the state it was in.
local job = ARGV[1]
local before = answered(ARGV[3])
if before then
  return before
end
if is_stale(ARGV[7]) then
  return redis.call('HGET', JOB, 'state')
end
local state = redis.call('HGET', JOB, 'state')
local now = now_ms()
local data = cjson.encode({by = ARGV[2]})
if state == 'queued' or state == 'placed' or state == 'paused' then
  conclude(now, job, 'cancelled')
  event(now, job, ARGV[5], redis.call('HGET', JOB, 'token'), data)
elseif state == 'running' then
  redis.call('HSET', JOB, 'stop', ARGV[4])
  event(now, job, ARGV[6], redis.call('HGET', JOB, 'token'), data)
end
return state and answer(ARGV[3], state)
