-- Append a writer's next entries to a study's log; once, however often the command is sent.
-- KEYS: the log, a hash of each writer's last number
-- ARGV: writer, number of these entries, entries as JSON
-- Returns 1, or 0 when there is no such study (any more).
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
if tonumber(redis.call('HGET', KEYS[2], ARGV[1]) or '0') < tonumber(ARGV[2]) then
  redis.call('RPUSH', KEYS[1], unpack(ARGV, 3))
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
end
return 1
