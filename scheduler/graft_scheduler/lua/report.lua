-- Write what a running attempt has to say, if its token still holds.
-- ARGV: job, token, nonce, progress (JSON or ''), new checkpoints in the order of their steps (JSON list or ''),
--       events (JSON list of {name, data as JSON text}), log lines (JSON list of text),
--       logs of earlier attempts that are in the store now (JSON each)
-- Returns 1, or 0 when fenced.
if not holds(ARGV[2], ARGV[3]) then
  return 0
end
local now = now_ms()
if ARGV[4] ~= '' then
  redis.call('HSET', JOB, 'progress', ARGV[4])
end
if ARGV[5] ~= '' then
  local checkpoints = read_list('checkpoints')
  for _, new in ipairs(cjson.decode(ARGV[5])) do
    new.at = now
    -- What lies beyond is of an attempt that had got further than the one that goes on.
    local earlier = {}
    for _, one in ipairs(checkpoints) do
      if one.step < new.step then
        earlier[#earlier + 1] = one
      end
    end
    earlier[#earlier + 1] = new
    checkpoints = earlier
  end
  keep_checkpoints(ARGV[1], checkpoints)
  local last = checkpoints[#checkpoints]
  -- It got further: hosts that were lost before are no sign any more that it brings them down.
  redis.call('HSET', JOB, 'resume', cjson.encode({digest = last.digest, step = last.step}), 'lost', 0, 'stalled', 0)
end
for _, one in ipairs(cjson.decode(ARGV[6])) do
  event(now, ARGV[1], one[1], ARGV[2], one[2])
end
for _, line in ipairs(cjson.decode(ARGV[7])) do
  redis.call('XADD', JOB_LOG, 'MAXLEN', '~', 5000, '*', 'at', text(now), 'line', line, 'token', ARGV[2])
end
for number = 8, #ARGV do
  keep_log(ARGV[number])
end
return 1
