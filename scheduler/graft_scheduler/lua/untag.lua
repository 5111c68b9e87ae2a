-- Take a name away from what has it, and from the record what only the name kept there.
-- ARGV: job, name, digest, who asks
-- Returns 1, or 0 when it is another's now, or nobody's.
local held = redis.call('HGET', TAGS, ARGV[2])
local one = held and cjson.decode(held)
if not one or one.job ~= ARGV[1] or one.digest ~= ARGV[3] then
  return 0
end
redis.call('HDEL', TAGS, ARGV[2])
if redis.call('EXISTS', JOB) == 1 then
  keep_checkpoints(ARGV[1], read_list('checkpoints'))
  event(now_ms(), ARGV[1], 'untagged', redis.call('HGET', JOB, 'token'),
    cjson.encode({name = ARGV[2], by = ARGV[4]}))
end
return 1
