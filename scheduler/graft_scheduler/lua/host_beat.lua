-- Register a host or report that it lives.
-- ARGV: host, info (JSON), name, machine id, budget bytes, machine's bytes, slots, backend,
--       seconds it is remembered, ms without a report after which it counted as away
-- Returns 1 when its jobs should drain, else 0.
local now = now_ms()
local seen = redis.call('ZSCORE', HOSTS, ARGV[1])
redis.call('HSET', HOST, 'info', ARGV[2], 'name', ARGV[3], 'machine_id', ARGV[4], 'budget_bytes', ARGV[5],
  'machine_bytes', ARGV[6], 'slots', ARGV[7], 'backend', ARGV[8])
redis.call('EXPIRE', HOST, ARGV[9])
redis.call('ZADD', HOSTS, text(now), ARGV[1])
if not seen or now - seen > tonumber(ARGV[10]) then
  wake()
end
return redis.call('HGET', HOST, 'draining') == '1' and 1 or 0
