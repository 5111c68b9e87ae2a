-- Take what an ended job has made out of its record. What has a name is kept under that.
-- ARGV: job, who asks, request
-- Returns the state it is in.
local job = ARGV[1]
local before = answered(ARGV[3])
if before then
  return before
end
local state = redis.call('HGET', JOB, 'state')
if state == 'completed' or state == 'failed' or state == 'cancelled' then
  local now = now_ms()
  redis.call('HSET', JOB, 'adapter', '', 'adapter_bytes', '', 'resume', '', 'checkpoints', '',
    'removed_token', redis.call('HGET', JOB, 'token'), 'removed', string.format('{"by":%s,"at":%s}', cjson.encode(ARGV[2]), text(now)))
  event(now, job, 'adapter removed', redis.call('HGET', JOB, 'token'), cjson.encode({by = ARGV[2]}))
end
return state and answer(ARGV[3], state)
