-- Renew a lease.
-- ARGV: job, token, nonce, lease ms
-- Returns 'go', the reason to stop ('cancel', 'prune', 'pause' or 'yield'), or 'fenced'.
if not holds(ARGV[2], ARGV[3]) then
  return 'fenced'
end
redis.call('ZADD', LEASES, text(now_ms() + ARGV[4]), ARGV[1])
local stop = redis.call('HGET', JOB, 'stop')
return (stop and stop ~= '') and stop or 'go'
