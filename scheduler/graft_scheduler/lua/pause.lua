-- Pause a job that waits, or ask its runner to; not one that is about to end.
-- ARGV: job, who asks, request, who must lead or ''
-- Returns the state it was in.
local job = ARGV[1]
local before = answered(ARGV[3])
if before then
  return before
end
if is_stale(ARGV[4]) then
  return redis.call('HGET', JOB, 'state')
end
local state = redis.call('HGET', JOB, 'state')
local now = now_ms()
local data = cjson.encode({by = ARGV[2]})
if state == 'queued' or state == 'placed' then
  pause(now, job)
  event(now, job, 'paused', redis.call('HGET', JOB, 'token'), data)
elseif state == 'running' and (redis.call('HGET', JOB, 'stop') or '') == '' then
  redis.call('HSET', JOB, 'stop', 'pause')
  event(now, job, 'pausing', redis.call('HGET', JOB, 'token'), data)
end
return state and answer(ARGV[3], state)
