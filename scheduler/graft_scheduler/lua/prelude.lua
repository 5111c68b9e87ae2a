-- Put before every script. Names the keys, which all scripts get in this order, and holds what
-- several of them do. All times are milliseconds on Redis' own clock.
--
-- KEYS[1] hash: the job's record          KEYS[8]  sorted set: all jobs by submission
-- KEYS[2] stream: the job's events        KEYS[9]  sorted set: hosts by last report
-- KEYS[3] stream: the job's log lines     KEYS[10] stream: the events of all jobs
-- KEYS[4] sorted set: queued jobs         KEYS[11] list: wakes the leader
-- KEYS[5] sorted set: placed jobs         KEYS[12] string: who leads
-- KEYS[6] sorted set: leases              KEYS[13] counter: leaderships
-- KEYS[7] hash: committed memory          KEYS[14] string: when a leader last looked
-- KEYS[15] counter: orders submissions    KEYS[16] hash: the host's record
-- KEYS[17] sorted set: groups of queued jobs that are alike, by the score of their first
-- KEYS[18] hash: what the jobs of a group ask for
-- KEYS[19] sorted set, by name: '<group>:<score>:<job>' of every queued job
-- KEYS[20] hash: groups that hold a reservation, and the job of each
-- KEYS[21] sorted set, by name: '<machine>:<host>:<job>' of every placed or running job
-- KEYS[22] hash: what finished jobs taught of their kind
-- KEYS[23] sorted set: paused jobs by when they were paused
-- KEYS[24] list: wakes the driver of studies
-- KEYS[25] hash: names of adapters and checkpoints
-- Scripts that concern no job, or no host, get an empty name in its place and do not use it.
local JOB, JOB_EVENTS, JOB_LOG = KEYS[1], KEYS[2], KEYS[3]
local QUEUE, PLACED, LEASES, COMMITTED = KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local JOBS, HOSTS, EVENTS, WAKE = KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local LEADER, EPOCH, CLOCK, SEQUENCE, HOST = KEYS[12], KEYS[13], KEYS[14], KEYS[15], KEYS[16]
local GROUPS, GROUP_REQUESTS, GROUPED, RESERVED, HELD = KEYS[17], KEYS[18], KEYS[19], KEYS[20], KEYS[21]
local LESSONS, PAUSED, STUDY_WAKE, TAGS = KEYS[22], KEYS[23], KEYS[24], KEYS[25]

local RECORD_TTL_SECONDS = 90 * 86400 -- how long an ended job is remembered
local LOG_TTL_SECONDS = 7 * 86400     -- how long its log lines stay here; the store keeps them whole
local MAX_REST_SECONDS = 300          -- longest time that a host which takes nothing is left alone
local MAX_LESSONS = 20                -- measurements kept of one kind of job
local MAX_FAULTS = 3                  -- different jobs failed in a row that cordon a host

local function text(number)
  return string.format('%.0f', number)
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function event(now, job, name, token, data)
  for stream, most in pairs({[JOB_EVENTS] = 1000, [EVENTS] = 10000}) do
    redis.call('XADD', stream, 'MAXLEN', '~', most, '*', 'at', text(now), 'job', job,
      'name', name, 'token', token or '', 'data', data or '{}')
  end
end

local function wake()
  redis.call('LPUSH', WAKE, 1)
  redis.call('LTRIM', WAKE, 0, 0)
end

-- A job came to rest: whoever drives the study that it may be of has something to decide.
local function wake_driver()
  redis.call('LPUSH', STUDY_WAKE, 1)
  redis.call('LTRIM', STUDY_WAKE, 0, 0)
end

-- Every member of a sorted set by name that begins with this, the first `most` of them.
local function beginning(set, start, most)
  return redis.call('ZRANGEBYLEX', set, '[' .. start, '(' .. start .. '\255', 'LIMIT', 0, most)
end

-- Out of the group that the job waits in; a group without jobs is forgotten.
local function ungroup(job)
  local member = redis.call('HGET', JOB, 'grouped')
  if not member or member == '' then
    return
  end
  local group = string.match(member, '^[^:]+')
  redis.call('HSET', JOB, 'grouped', '')
  redis.call('ZREM', GROUPED, member)
  local first = beginning(GROUPED, group .. ':', 1)[1]
  if first then
    redis.call('ZADD', GROUPS, string.match(first, ':(%d+):'), group)
  else
    redis.call('ZREM', GROUPS, group)
    redis.call('HDEL', GROUP_REQUESTS, group)
    redis.call('HDEL', RESERVED, group)
  end
end

-- Into the group of the jobs that are alike in all that placement looks at. The name of a group is
-- made from that alone, so that it is the same after a retry and for every leader.
local function regroup(job)
  ungroup(job)
  local has = redis.call('HMGET', JOB, 'score', 'request', 'avoid', 'above_bytes', 'not_before', 'reserved_on')
  local alike = {}
  for number = 2, 6 do
    alike[number - 1] = has[number] or ''
  end
  local asked = cjson.encode(alike)
  local group = redis.sha1hex(asked)
  local member = string.format('%s:%015.0f:%s', group, has[1], job)
  redis.call('ZADD', GROUPED, 0, member)
  redis.call('HSET', GROUP_REQUESTS, group, asked)
  redis.call('ZADD', GROUPS, string.match(beginning(GROUPED, group .. ':', 1)[1], ':(%d+):'), group)
  redis.call('HSET', JOB, 'grouped', member)
  if alike[5] ~= '' then
    redis.call('HSET', RESERVED, group, job)
  end
end

-- Out of every set that says who holds the job.
local function release(job)
  redis.call('ZREM', QUEUE, job)
  ungroup(job)
  redis.call('ZREM', PLACED, job)
  redis.call('ZREM', LEASES, job)
  redis.call('ZREM', PAUSED, job)
  local held = redis.call('HGET', COMMITTED, job)
  if held then
    local one = cjson.decode(held)
    redis.call('ZREM', HELD, one.machine .. ':' .. one.host .. ':' .. job)
    redis.call('HDEL', COMMITTED, job)
  end
end

-- Back to the place in the queue that it had.
local function enqueue(now, job)
  release(job)
  redis.call('ZADD', QUEUE, redis.call('HGET', JOB, 'score'), job)
  redis.call('HSET', JOB, 'state', 'queued', 'queued_at', text(now))
  regroup(job)
  wake()
end

-- Out of the queue, with all that it has, until it is told to go on.
local function pause(now, job)
  release(job)
  redis.call('ZADD', PAUSED, text(now), job)
  redis.call('HSET', JOB, 'state', 'paused', 'stop', '')
  wake()
  wake_driver()
end

local function conclude(now, job, state)
  release(job)
  redis.call('HSET', JOB, 'state', state, 'finished_at', text(now))
  redis.call('EXPIRE', JOB, RECORD_TTL_SECONDS)
  redis.call('EXPIRE', JOB_EVENTS, RECORD_TTL_SECONDS)
  redis.call('EXPIRE', JOB_LOG, LOG_TTL_SECONDS)
  wake()
  wake_driver()
end

-- Whether the caller holds the job: the token fences older attempts, the nonce of the claim one
-- that a power cut made Redis forget.
local function holds(token, nonce)
  local held = redis.call('HMGET', JOB, 'state', 'token', 'nonce')
  return held[1] == 'running' and held[2] == token and held[3] == nonce
end

-- Whether the caller acts for a scheduler that does not lead any more; '' acts for nobody.
local function is_stale(leader)
  return leader ~= '' and redis.call('GET', LEADER) ~= leader
end

-- A request that is said again, because its answer was lost, gets the answer it had.
local function answered(request)
  if redis.call('HGET', JOB, 'asked') == request then
    return redis.call('HGET', JOB, 'answer')
  end
end

local function answer(request, text)
  redis.call('HSET', JOB, 'asked', request, 'answer', text)
  return text
end

-- Of these checkpoints the best, the last and those with a name stay in the record.
local function keep_checkpoints(job, checkpoints)
  local best, last
  for _, one in ipairs(checkpoints) do
    if type(one.loss) == 'number' and (not best or one.loss < best.loss) then
      best = one
    end
    if not last or one.step > last.step then
      last = one
    end
  end
  local named = {}
  for _, entry in ipairs(redis.call('HVALS', TAGS)) do
    local tag = cjson.decode(entry)
    if tag.job == job then
      named[tag.digest] = true
    end
  end
  local kept = {}
  for _, one in ipairs(checkpoints) do
    if one == best or one == last or named[one.digest] then
      kept[#kept + 1] = one
    end
  end
  redis.call('HSET', JOB, 'checkpoints', #kept > 0 and cjson.encode(kept) or '')
end

local function read_list(field)
  local text = redis.call('HGET', JOB, field)
  return text and text ~= '' and cjson.decode(text) or {}
end

-- The log of one attempt is in the store; what is known of it already gives way.
local function keep_log(text)
  local log, logs = cjson.decode(text), {}
  for _, one in ipairs(read_list('logs')) do
    if one.token ~= log.token then
      logs[#logs + 1] = one
    end
  end
  logs[#logs + 1] = log
  table.sort(logs, function(one, other) return one.token < other.token end)
  redis.call('HSET', JOB, 'logs', cjson.encode(logs))
end
