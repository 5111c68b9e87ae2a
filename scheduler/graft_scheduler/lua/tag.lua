-- Give a name to an adapter or checkpoint that is in the job's record now.
-- ARGV: job, name, tag (JSON), digest, whether a name that another has may be moved (0|1)
-- Returns {'tagged', the tag that had the name or ''}, {'gone', ''}, or {'taken', the tag that has the name}.
local job, name, digest = ARGV[1], ARGV[2], ARGV[4]
local held = redis.call('HGET', TAGS, name)
if held then
  local one = cjson.decode(held)
  if one.job == job and one.digest == digest then
    return {'tagged', ''}
  end
  if ARGV[5] ~= '1' then
    return {'taken', held}
  end
end
local checkpoints = read_list('checkpoints')
local is_there = redis.call('HGET', JOB, 'adapter') == digest
for _, one in ipairs(checkpoints) do
  is_there = is_there or one.digest == digest
end
if not is_there then
  return {'gone', ''}
end
local now = now_ms()
redis.call('HSET', TAGS, name, ARGV[3])
keep_checkpoints(job, checkpoints) -- without what only this name kept, if it was this job's
event(now, job, 'tagged', redis.call('HGET', JOB, 'token'), cjson.encode({name = name, digest = digest}))
return {'tagged', held or ''}
