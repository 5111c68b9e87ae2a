-- Begin a study's log under a name that is free; once, however often the command is sent.
-- KEYS: hash of names, the log
-- ARGV: name, number of the study, first entry as JSON
-- Returns 1, or 0 when another study has the name.
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 1 then
  redis.call('RPUSH', KEYS[2], ARGV[3])
  return 1
end
return redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] and 1 or 0
