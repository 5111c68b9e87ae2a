-- Give up the lead, so that another scheduler need not wait for it to run out.
-- ARGV: leader value
if redis.call('GET', LEADER) == ARGV[1] then
  redis.call('DEL', LEADER)
end
return 1
