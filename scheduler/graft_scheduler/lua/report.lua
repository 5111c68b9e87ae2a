-- Write what a running attempt has to say, if its token still holds.
-- ARGV: job, token, nonce, progress (JSON or ''), resume point (JSON or ''),
--       events (JSON list of {name, data as JSON text}), log lines (JSON list of text)
-- Returns 1, or 0 when fenced.
if not holds(ARGV[2], ARGV[3]) then
  return 0
end
local now = now_ms()
if ARGV[4] ~= '' then
  redis.call('HSET', JOB, 'progress', ARGV[4])
end
if ARGV[5] ~= '' then
  -- It got further: hosts that were lost before are no sign any more that it brings them down.
  redis.call('HSET', JOB, 'resume', ARGV[5], 'lost', 0, 'stalled', 0)
end
for _, one in ipairs(cjson.decode(ARGV[6])) do
  event(now, ARGV[1], one[1], ARGV[2], one[2])
end
for _, line in ipairs(cjson.decode(ARGV[7])) do
  redis.call('XADD', JOB_LOG, 'MAXLEN', '~', 5000, '*', 'at', text(now), 'line', line)
end
return 1
