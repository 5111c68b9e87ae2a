-- Queue a paused job again; it goes on from its checkpoint. One that is asked to pause gives its host back
-- and is queued.
-- ARGV: job, who asks, request, step to pause at next, '' for none, or 'same', who must lead or ''
-- Returns the state it was in.
local job = ARGV[1]
local before = answered(ARGV[3])
if before then
  return before
end
if is_stale(ARGV[5]) then
  return redis.call('HGET', JOB, 'state')
end
local held = redis.call('HMGET', JOB, 'state', 'stop')
local state = held[1]
local now = now_ms()
if state == 'paused' or (state == 'running' and held[2] == 'pause') then
  if ARGV[4] ~= 'same' then
    redis.call('HSET', JOB, 'pause_step', ARGV[4])
  end
  event(now, job, 'resumed', redis.call('HGET', JOB, 'token'), cjson.encode({by = ARGV[2]}))
end
if state == 'paused' then
  enqueue(now, job)
elseif state == 'running' and held[2] == 'pause' then
  redis.call('HSET', JOB, 'stop', 'yield')
end
return state and answer(ARGV[3], state)
