-- Register a host or report that it lives.
-- ARGV: host, info (JSON), name, machine id, budget bytes, machine's bytes, slots, backend,
--       seconds it is remembered, ms without a report after which it counted as away,
--       bytes that other processes leave to jobs, or '' where that is not known
-- Returns 1 when its jobs should drain, else 0.
local now = now_ms()
local seen = redis.call('ZSCORE', HOSTS, ARGV[1])
local before = redis.call('HMGET', HOST, 'budget_bytes', 'slots')
local grew = tonumber(ARGV[5]) > tonumber(before[1] or 0) or tonumber(ARGV[7]) > tonumber(before[2] or 0)
redis.call('HSET', HOST, 'info', ARGV[2], 'name', ARGV[3], 'machine_id', ARGV[4], 'budget_bytes', ARGV[5],
  'machine_bytes', ARGV[6], 'slots', ARGV[7], 'backend', ARGV[8], 'available_bytes', ARGV[11])
redis.call('EXPIRE', HOST, ARGV[9])
redis.call('ZADD', HOSTS, text(now), ARGV[1])
if grew or not seen or now - seen > tonumber(ARGV[10]) then
  wake()
end
return redis.call('HGET', HOST, 'draining') == '1' and 1 or 0
