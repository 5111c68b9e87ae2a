-- Queue a failed or cancelled job again, with its counts cleared; it goes on from its checkpoint. What it
-- has learned of memory stays, except for which hosts ran out of it.
-- ARGV: job, who asks, request
-- Returns the state it was in.
local job = ARGV[1]
local before = answered(ARGV[3])
if before then
  return before
end
local state = redis.call('HGET', JOB, 'state')
if state == 'failed' or state == 'cancelled' then
  local now = now_ms()
  redis.call('PERSIST', JOB)
  redis.call('PERSIST', JOB_EVENTS)
  redis.call('PERSIST', JOB_LOG)
  redis.call('HSET', JOB, 'charged', 0, 'lost', 0, 'stalled', 0, 'failure', '', 'finished_at', '',
    'stop', '', 'avoid', '', 'not_before', '', 'progress', '', 'pause_step', '', 'removed', '')
  local limit = redis.call('HGET', JOB, 'memory_limit')
  if limit and limit ~= '' then
    limit = cjson.decode(limit)
    limit.failures, limit.host_bytes = 0, 0
    redis.call('HSET', JOB, 'memory_limit', cjson.encode(limit))
  end
  redis.call('HSET', JOB, 'memory_failures', 0, 'above_bytes', '')
  event(now, job, 'retried', redis.call('HGET', JOB, 'token'), cjson.encode({by = ARGV[2]}))
  enqueue(now, job)
end
return state and answer(ARGV[3], state)
