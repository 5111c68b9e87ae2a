-- Accept a job: record, queue and event in one step.
-- ARGV: job, spec (JSON), kind, submitter, priority, bytes by backend (JSON) or '', store id,
--       request: all that placement must know (JSON), step to pause at or '', who must lead or ''
-- Returns 1, 0 when the id exists and is another job's, 2 when another leads.
local job = ARGV[1]
if redis.call('EXISTS', JOB) == 1 then
  return redis.call('HGET', JOB, 'spec') == ARGV[2] and 1 or 0
end
if is_stale(ARGV[10]) then
  return 2
end
local now = now_ms()
local score = ARGV[5] * 1e13 + redis.call('INCR', SEQUENCE)
redis.call('HSET', JOB, 'spec', ARGV[2], 'kind', ARGV[3], 'submitter', ARGV[4],
  'demands', ARGV[6], 'store_id', ARGV[7], 'request', ARGV[8], 'score', text(score), 'pause_step', ARGV[9],
  'token', 0, 'charged', 0, 'lost', 0, 'submitted_at', text(now))
redis.call('ZADD', JOBS, text(now), job)
event(now, job, 'submitted', '0', '{}')
enqueue(now, job)
return 1
