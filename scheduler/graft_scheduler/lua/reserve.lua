-- Keep room on a host for a queued job, or no longer.
-- ARGV: job, leader value, host or ''
-- Returns 1, or 0 when the caller does not lead or the job does not wait.
local job = ARGV[1]
if redis.call('GET', LEADER) ~= ARGV[2] or redis.call('HGET', JOB, 'state') ~= 'queued' then
  return 0
end
redis.call('HSET', JOB, 'reserved_on', ARGV[3])
regroup(job)
return 1
