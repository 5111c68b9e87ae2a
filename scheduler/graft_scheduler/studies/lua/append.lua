-- Append a writer's next entries to a study's log; once, however often the command is sent.
-- KEYS: the log, a hash of each writer's last number, who leads
-- ARGV: writer, number of these entries, '' or who must lead, entries as JSON
-- Returns 1; 0 when there is no such study (any more); -1 when another leads.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
if tonumber(redis.call('HGET', KEYS[2], ARGV[1]) or '0') >= tonumber(ARGV[2]) then
  return 1
end
if ARGV[3] ~= '' and redis.call('GET', KEYS[3]) ~= ARGV[3] then
  return -1
end
redis.call('RPUSH', KEYS[1], unpack(ARGV, 4))
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return 1
