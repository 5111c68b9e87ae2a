-- Renew a lease.
-- ARGV: job, token, lease ms
-- Returns 'go', 'cancel' or 'yield' (stop for that reason), or 'fenced'.
if not holds(ARGV[2]) then
  return 'fenced'
end
redis.call('ZADD', LEASES, text(now_ms() + ARGV[3]), ARGV[1])
local stop = redis.call('HGET', JOB, 'stop')
return (stop and stop ~= '') and stop or 'go'
