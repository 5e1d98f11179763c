-- Take tokens out of buckets ahead of the calls they are for, or give back what was not used.
-- KEYS: one for each bucket, in the form that decide.lua keeps.
-- ARGV: for each bucket its amount, its period in microseconds, the least that is of use, and how many
-- tokens are wanted; fewer may be granted, and a negative number is given back.
-- Returns for each bucket the tokens granted and the microseconds until the least will be there.

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local answer = {}
for i, key in ipairs(KEYS) do
  local amount, period = tonumber(ARGV[4 * i - 3]), tonumber(ARGV[4 * i - 2])
  local least, wanted = tonumber(ARGV[4 * i - 1]), tonumber(ARGV[4 * i])
  local interval = period / amount
  local missing, at = string.match(redis.call('GET', key) or '0 0', '^(%S+) (%d+)$')
  local back = tonumber(at) > now
  missing = math.max(0, tonumber(missing) - math.max(0, now - tonumber(at)) / interval)
  local granted = math.min(wanted, math.floor(amount - missing + 1 / interval))
  local left, wait = redis.call('PTTL', key), 0
  if wanted > 0 and granted < least then
    granted, wait = 0, (missing + least - amount) * interval
    if left >= 0 then wait = math.min(wait, left * 1000) end -- see within in decide.lua
  end
  missing = missing + granted
  if missing <= 0 then
    redis.call('DEL', key) -- full, and no fuller
  elseif granted ~= 0 or back then
    local life = missing * interval / 1000
    if granted <= 0 and left >= 0 then life = math.min(life, left) end
    redis.call('SET', key, string.format('%.17g %.0f', missing, now), 'PX', math.ceil(life) + 1)
  end
  answer[2 * i - 1] = granted
  answer[2 * i] = string.format('%.0f', math.ceil(wait))
end
return answer
