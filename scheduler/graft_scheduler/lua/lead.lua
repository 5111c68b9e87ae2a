-- Take or keep the lead; then give back the time in which no leader looked.
-- ARGV: instance, ttl ms, longest time ms between two looks that needs no giving back
-- Returns {1 if leading, leader value, ms given back}.
local now = now_ms()
local value = redis.call('GET', LEADER)
if not value then
  value = ARGV[1] .. ':' .. redis.call('INCR', EPOCH)
  redis.call('SET', LEADER, value, 'PX', ARGV[2])
elseif string.sub(value, 1, #ARGV[1] + 1) == ARGV[1] .. ':' then
  redis.call('PEXPIRE', LEADER, ARGV[2])
else
  return {0, value, 0}
end
local gap = now - (redis.call('GET', CLOCK) or now)
local most = tonumber(ARGV[3])
if gap >= 0 and gap <= most or gap < 0 and -gap <= most then
  gap = 0
end
if gap ~= 0 then
  -- A pause, or a clock that was set: what was due then is due as much later, or earlier.
  local shifted = gap > 0 and {LEASES, PLACED} or {LEASES, PLACED, HOSTS}
  for _, times in ipairs(shifted) do
    for _, member in ipairs(redis.call('ZRANGE', times, 0, -1)) do
      redis.call('ZINCRBY', times, text(gap), member)
    end
  end
end
redis.call('SET', CLOCK, text(now))
return {1, value, gap}
