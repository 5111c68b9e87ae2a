-- Forget a study and its name.
-- KEYS: hash of names, the log, a hash of each writer's last number, the record, the studies at work
-- ARGV: name, number of the study
-- Returns 1, or 0 when there is no such study (any more).
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
redis.call('ZREM', KEYS[5], ARGV[2])
return 1
