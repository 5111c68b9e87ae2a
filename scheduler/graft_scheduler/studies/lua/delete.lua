-- Forget a study and its name.
-- KEYS: hash of names, the log, a hash of each writer's last number
-- ARGV: name, number of the study
-- Returns 1, or 0 when there is no such study (any more).
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2], KEYS[3])
return 1
