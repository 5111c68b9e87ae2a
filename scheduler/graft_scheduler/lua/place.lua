-- Grant an assignment, if the caller still leads and the host still has the room.
-- ARGV: job, leader value, host, claim window ms, oldest report ms that counts as alive
-- Returns {'placed', token} or {'refused', reason}.
local job, host = ARGV[1], ARGV[3]
local now = now_ms()
if redis.call('GET', LEADER) ~= ARGV[2] then
  return {'refused', 'not the leader'}
end
if redis.call('HGET', JOB, 'state') ~= 'queued' then
  return {'refused', 'not queued'}
end
local seen = redis.call('ZSCORE', HOSTS, host)
local has = redis.call('HMGET', HOST, 'budget_bytes', 'machine_bytes', 'slots', 'machine_id',
  'draining', 'cordoned', 'name', 'backend')
if not seen or now - seen > tonumber(ARGV[5]) or not has[1] then
  return {'refused', 'host is away'}
end
if has[5] == '1' or has[6] == '1' then
  return {'refused', 'host takes nothing new'}
end

local budget, machine_budget = tonumber(has[1]), tonumber(has[2])
local estimates = redis.call('HGET', JOB, 'estimates')
-- A job of unknown size takes the whole host.
local bytes = math.min(budget, machine_budget)
if estimates ~= '' then
  bytes = cjson.decode(estimates)[has[8]] or bytes
end
local jobs, on_host, on_machine = 0, 0, 0
for _, held in ipairs(redis.call('HVALS', COMMITTED)) do
  local one = cjson.decode(held)
  if one.host == host then
    jobs = jobs + 1
    on_host = on_host + one.bytes
  end
  if one.machine == has[4] then
    on_machine = on_machine + one.bytes
  end
end
if jobs >= tonumber(has[3]) then
  return {'refused', 'no free slot'}
end
if on_host + bytes > budget or on_machine + bytes > machine_budget then
  return {'refused', 'not enough memory'}
end

local token = redis.call('HINCRBY', JOB, 'token', 1)
local assignment = cjson.encode({token = token, jobs = {job}, hosts = {host}, host_name = has[7]})
redis.call('ZREM', QUEUE, job)
redis.call('ZADD', PLACED, text(now + ARGV[4]), job)
redis.call('HSET', COMMITTED, job, '{"host":' .. cjson.encode(host) .. ',"machine":' .. cjson.encode(has[4])
  .. ',"bytes":' .. text(bytes) .. '}')
redis.call('HSET', JOB, 'state', 'placed', 'assignment', assignment, 'host', host,
  'reserved_bytes', text(bytes))
event(now, job, 'placed', token, cjson.encode({host = has[7]}))
return {'placed', token}
