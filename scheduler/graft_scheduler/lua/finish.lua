-- End an attempt: the job ends, or is queued again. Saying it twice does it once.
-- ARGV: job, token, outcome (completed|failed|cancelled|queued), charge (0|1), lose (0|1),
--       blame the host (0|1), event name, event data (JSON),
--       failure (JSON or ''), result (JSON or ''), adapter or '', log or ''
-- Returns the new state, or 'fenced'.
local job, token, outcome = ARGV[1], ARGV[2], ARGV[3]

-- A host that fails different jobs in a row is what is wrong, and gets no more until somebody looks.
local function blame(now, job, token)
  local faulty = cjson.decode(redis.call('HGET', HOST, 'faulty_jobs') or '[]')
  for _, earlier in ipairs(faulty) do
    if earlier == job then
      return
    end
  end
  faulty[#faulty + 1] = job
  redis.call('HSET', HOST, 'faulty_jobs', cjson.encode(faulty))
  redis.call('HSET', JOB, 'avoid', redis.call('HGET', JOB, 'host'))
  if #faulty == MAX_FAULTS then
    redis.call('HSET', HOST, 'cordoned', 1)
    event(now, job, 'cordoned', token, ARGV[8])
  end
end

if redis.call('HGET', JOB, 'ended_token') == token then
  return redis.call('HGET', JOB, 'state')
end
if not holds(token) then
  return 'fenced'
end
local now = now_ms()
if outcome == 'queued' and redis.call('HGET', JOB, 'stop') == 'cancel' then
  outcome = 'cancelled'
end
redis.call('HINCRBY', JOB, 'charged', ARGV[4])
redis.call('HINCRBY', JOB, 'lost', ARGV[5])
redis.call('HSET', JOB, 'ended_token', token, 'stop', '', 'failure', ARGV[9])
for field, value in pairs({result = ARGV[10], adapter = ARGV[11], log = ARGV[12]}) do
  if value ~= '' then
    redis.call('HSET', JOB, field, value)
  end
end
if ARGV[6] == '1' then
  blame(now, job, token)
elseif outcome == 'completed' then
  redis.call('HSET', HOST, 'faulty_jobs', '[]')
end
event(now, job, ARGV[7], token, ARGV[8])
if outcome == 'queued' then
  enqueue(now, job)
else
  conclude(now, job, outcome)
  if outcome ~= ARGV[7] then
    event(now, job, outcome, token, ARGV[8])
  end
end
return outcome
