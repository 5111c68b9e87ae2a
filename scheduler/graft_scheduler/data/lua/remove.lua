-- Take the name from a version, or from all of them; numbers are never used again while the name is known.
-- KEYS: sorted set of names, the data set
-- ARGV: name, number of the version or '' for all
-- Returns how many versions lost their name.
local NAMES, DATASET = KEYS[1], KEYS[2]
local removed, left = 0, 0
local fields = redis.call('HGETALL', DATASET)
for i = 1, #fields, 2 do
  if string.sub(fields[i], 1, 7) == 'sha256:' then
    local number = fields[i + 1]
    if ARGV[2] == '' or ARGV[2] == number then
      redis.call('HDEL', DATASET, fields[i], 'v' .. number, 'v' .. number .. ':at', 'v' .. number .. ':by')
      removed = removed + 1
    else
      left = left + 1
    end
  end
end
if left == 0 then
  redis.call('ZREM', NAMES, ARGV[1])
end
return removed
