-- End an attempt: the job ends, is queued again, or pauses. Saying it twice does it once.
-- ARGV: job, token, nonce, outcome (completed|failed|cancelled|queued|paused), the count that rises
--       (charged|lost|stalled|memory_failures or ''), blame the host (0|1), ms before it may be placed again,
--       event name, event data (JSON), failure (JSON or ''), result (JSON or ''), adapter or '', the attempt's log (JSON or ''),
--       memory limit (JSON or '' to keep it), bytes that hosts must be above or '', memory samples (JSON or ''),
--       the adapter's bytes or '',
--       whom a lesson is for or '', measured over predicted peak or '', operations a second or ''
-- Returns the new state, or 'fenced'.
local job, token, nonce, outcome = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local name, data = ARGV[8], ARGV[9]

-- A host that fails different jobs in a row is what is wrong, and gets no more until somebody looks.
local function blame(now)
  local faulty = cjson.decode(redis.call('HGET', HOST, 'faulty_jobs') or '[]')
  for _, earlier in ipairs(faulty) do
    if earlier == job then
      return
    end
  end
  faulty[#faulty + 1] = job
  redis.call('HSET', HOST, 'faulty_jobs', cjson.encode(faulty))
  if #faulty == MAX_FAULTS then
    redis.call('HSET', HOST, 'cordoned', 1)
    event(now, job, 'cordoned', token, data)
  end
end

-- The newest measurements of one kind of job, at most so many of them.
local function kept(values, value)
  values = values or {}
  if value then
    values[#values + 1] = value
  end
  while #values > MAX_LESSONS do
    table.remove(values, 1)
  end
  return values
end

-- The value that this share of the others does not exceed.
local function quantile(values, share)
  local sorted = {unpack(values)}
  table.sort(sorted)
  return sorted[math.max(1, math.ceil(#sorted * share))]
end

-- Memory is corrected by what nine in ten jobs stay below, speed by what half of them reach.
local function learn(name, factor, speed)
  local lesson = cjson.decode(redis.call('HGET', LESSONS, name) or '{}')
  lesson.factors, lesson.speeds = kept(lesson.factors, factor), kept(lesson.speeds, speed)
  if #lesson.factors > 0 then
    lesson.memory_factor = quantile(lesson.factors, 0.9)
  end
  lesson.flops_per_second = quantile(lesson.speeds, 0.5)
  lesson.samples = (lesson.samples or 0) + 1
  redis.call('HSET', LESSONS, name, cjson.encode(lesson))
end

local ended = redis.call('HMGET', JOB, 'ended_token', 'nonce', 'state')
if ended[1] == token and ended[2] == nonce then
  return ended[3]
end
if not holds(token, nonce) then
  return 'fenced'
end
local now = now_ms()
local asked = redis.call('HGET', JOB, 'stop')
if outcome == 'queued' or outcome == 'paused' then
  if asked == 'cancel' or asked == 'prune' then
    outcome = 'cancelled'
  elseif asked == 'pause' then
    outcome = 'paused'
  elseif asked == 'yield' then
    outcome = 'queued'
  end
end
if ARGV[5] ~= '' then
  redis.call('HINCRBY', JOB, ARGV[5], 1)
  redis.call('HSET', JOB, 'avoid', redis.call('HGET', JOB, 'host'))
end
redis.call('HSET', JOB, 'ended_token', token, 'stop', '', 'failure', ARGV[10],
  'not_before', ARGV[7] == '0' and '' or text(now + ARGV[7]))
for field, value in pairs({result = ARGV[11], adapter = ARGV[12], memory_limit = ARGV[14],
  above_bytes = ARGV[15], memory = ARGV[16], adapter_bytes = ARGV[17]}) do
  if value ~= '' then
    redis.call('HSET', JOB, field, value)
  end
end
if ARGV[13] ~= '' then
  keep_log(ARGV[13])
end
if ARGV[6] == '1' then
  blame(now)
elseif outcome == 'completed' then
  redis.call('HSET', HOST, 'faulty_jobs', '[]')
end
if ARGV[18] and ARGV[18] ~= '' then
  learn(ARGV[18], tonumber(ARGV[19]), tonumber(ARGV[20]))
end
event(now, job, name, token, data)
if outcome == 'queued' then
  enqueue(now, job)
elseif outcome == 'paused' then
  pause(now, job)
else
  conclude(now, job, outcome)
  if outcome ~= name then
    event(now, job, outcome, token, data)
  end
end
return outcome
