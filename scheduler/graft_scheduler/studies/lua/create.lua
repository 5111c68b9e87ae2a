-- Begin a study's log under a name that is free, or that is its own already; once, however often the
-- command is sent.
-- KEYS: hash of names, the log
-- ARGV: name, number of the study, first entry as JSON
-- Returns 1, or 0 when another study has the name.
redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2])
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('RPUSH', KEYS[2], ARGV[3])
end
return 1
