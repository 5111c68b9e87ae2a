-- Grant an assignment, if the caller still leads and the host still has the room.
-- ARGV: job, leader value, host, claim window ms, oldest report ms that counts as alive,
--       bytes to reserve, ms it will take or '', the job beside whose reservation it runs or ''
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

local bytes = tonumber(ARGV[6])
local jobs, on_host, on_machine = 0, 0, 0
local held = beginning(HELD, has[4] .. ':', -1)
for number, name in ipairs(held) do
  held[number] = string.match(name, '[^:]+$')
end
for _, entry in ipairs(#held > 0 and redis.call('HMGET', COMMITTED, unpack(held)) or {}) do
  local one = cjson.decode(entry)
  on_machine = on_machine + one.bytes
  if one.host == host then
    jobs = jobs + 1
    on_host = on_host + one.bytes
  end
end
if jobs >= tonumber(has[3]) then
  return {'refused', 'no free slot'}
end
if on_host + bytes > tonumber(has[1]) or on_machine + bytes > tonumber(has[2]) then
  return {'refused', 'not enough memory'}
end

local token = redis.call('HINCRBY', JOB, 'token', 1)
local assignment = cjson.encode({token = token, jobs = {job}, hosts = {host}, host_name = has[7]})
redis.call('ZREM', QUEUE, job)
ungroup(job)
redis.call('ZADD', PLACED, text(now + ARGV[4]), job)
-- Numbers of bytes and times are written by hand: cjson would shorten them.
redis.call('HSET', COMMITTED, job, string.format('{"host":%s,"machine":%s,"bytes":%s,"at":%s,"ends":%s,"beside":%s}',
  cjson.encode(host), cjson.encode(has[4]), text(bytes), text(now),
  ARGV[7] == '' and 'null' or text(now + ARGV[7]), cjson.encode(ARGV[8])))
redis.call('ZADD', HELD, 0, has[4] .. ':' .. host .. ':' .. job)
redis.call('HSET', JOB, 'state', 'placed', 'assignment', assignment, 'host', host,
  'reserved_bytes', text(bytes), 'reserved_on', '')
event(now, job, 'placed', token, cjson.encode({host = has[7]}))
return {'placed', token}
