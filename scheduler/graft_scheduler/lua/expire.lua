-- Take a job from a host that did not claim it or stopped renewing its lease.
-- ARGV: job, most lost hosts, longest time ms since a leader's last look,
--       '' or the boot id of a worker that has just started and so cannot hold older jobs
-- Returns the new state, or '' when there was nothing to do.
local job, most_lost, restarted = ARGV[1], tonumber(ARGV[2]), ARGV[4]
local now = now_ms()
local held = redis.call('HMGET', JOB, 'state', 'token', 'stop', 'boot', 'assignment')
local state, token = held[1], held[2]
-- After a time without a leader, leases are extended first: nobody could have renewed them.
if restarted == '' and now - (redis.call('GET', CLOCK) or 0) > tonumber(ARGV[3]) then
  return ''
end

if state == 'placed' then
  local deadline = redis.call('ZSCORE', PLACED, job)
  if restarted == '' and (not deadline or tonumber(deadline) > now) then
    return ''
  end
  -- The first miss may be a lost message; a host that goes on missing is asked less and less often.
  local missed = redis.call('HINCRBY', HOST, 'missed_claims', 1)
  if missed > 1 then
    redis.call('HSET', HOST, 'rests_until', text(now + math.min(2 ^ missed, MAX_REST_SECONDS) * 1000))
  end
  event(now, job, 'unclaimed', token, held[5])
  enqueue(now, job)
  return 'queued'
end

if state ~= 'running' then
  return ''
end
local lease = redis.call('ZSCORE', LEASES, job)
if restarted == '' and (not lease or tonumber(lease) > now) then
  return ''
end
if restarted ~= '' and held[4] == restarted then
  return ''
end
local lost = redis.call('HINCRBY', JOB, 'lost', 1)
redis.call('HSET', JOB, 'stop', '', 'avoid', redis.call('HGET', JOB, 'host'))
event(now, job, 'lost', token, held[5])
if held[3] == 'cancel' or held[3] == 'prune' then
  conclude(now, job, 'cancelled')
  event(now, job, 'cancelled', token)
  return 'cancelled'
end
if lost >= most_lost then
  redis.call('HSET', JOB, 'failure', cjson.encode({failure = 'host', token = tonumber(token),
    text = 'its host was lost ' .. lost .. ' times; it may be what brings hosts down'}))
  conclude(now, job, 'failed')
  event(now, job, 'failed', token, redis.call('HGET', JOB, 'failure'))
  return 'failed'
end
if held[3] == 'pause' then
  pause(now, job)
  event(now, job, 'paused', token)
  return 'paused'
end
enqueue(now, job)
return 'queued'
