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
  local full_at = tonumber(redis.call('GET', key) or now)
  full_at = math.max(now, math.min(full_at, now + period))
  local granted = math.min(wanted, math.floor((now + period + 1 - full_at) / interval))
  local wait = 0
  if wanted > 0 and granted < least then
    granted, wait = 0, full_at + least * interval - now - period
  end -- and written in any case, for a clock that has stepped back
  full_at = full_at + granted * interval
  if full_at > now then
    redis.call('SET', key, string.format('%.17g', full_at), 'PX', math.ceil((full_at - now) / 1000) + 1)
  else
    redis.call('DEL', key) -- full, and no fuller
  end
  answer[2 * i - 1] = granted
  answer[2 * i] = string.format('%.0f', math.ceil(wait))
end
return answer
