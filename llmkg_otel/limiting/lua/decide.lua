-- Decide one call by all its rules at once: each has room and is charged, or none is.
-- KEYS: one for each rule, all in one hash slot.
-- ARGV: the call's cost, then for each rule its strategy, its amount and its period in microseconds.
-- Returns {0, "0"}, or the index of the rule that has room last and the microseconds until then.
-- Time is the server's. Should it step back, what lies in the future is counted as of now, once.

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local cost = tonumber(ARGV[1])

local function keep(key, value, microseconds)
  redis.call('SET', key, value, 'PX', math.ceil(microseconds / 1000) + 1)
end

-- Microseconds, but no more than are left until the key expires: a bucket that a larger rule has left in
-- debt by the lights of a smaller one is full when the larger one would have filled it.
local function within(key, microseconds)
  local left = redis.call('PTTL', key) * 1000
  return left >= 0 and math.min(microseconds, left) or microseconds
end

local strategies = {}

-- The tokens that are missing, and when that was so: no rule's own terms, so that instances with the old
-- and with the new limit, while a change is rolled out, fill and empty one and the same bucket.
function strategies.token_bucket(key, amount, period)
  local missing, at = string.match(redis.call('GET', key) or '0 0', '^(%S+) (%d+)$')
  missing, at = tonumber(missing), tonumber(at)
  if at > now then
    at = now
    keep(key, string.format('%.17g %.0f', missing, now), within(key, missing * period / amount))
  end
  missing = math.max(0, missing - (now - at) * amount / period) + cost
  local excess = (missing - amount) * period / amount
  if excess > 1 then
    return within(key, excess)
  end
  return 0, function() keep(key, string.format('%.17g %.0f', missing, now), missing * period / amount) end
end

-- The window's number, and the count in it.
function strategies.fixed_window(key, amount, period)
  local index = math.floor(now / period)
  local at, count = string.match(redis.call('GET', key) or '', '^(%d+) (%d+)$')
  count = (at and tonumber(at) >= index) and tonumber(count) or 0
  if at and tonumber(at) > index then
    keep(key, string.format('%.0f %.0f', index, count), period)
  end
  if count + cost > amount then
    return (index + 1) * period - now
  end
  return 0, function() keep(key, string.format('%.0f %.0f', index, count + cost), period) end
end

-- The window's number, the count in the one before, and the count in it.
function strategies.sliding_window(key, amount, period)
  local index = math.floor(now / period)
  local at, before, count = string.match(redis.call('GET', key) or '', '^(%d+) (%d+) (%d+)$')
  at, before, count = tonumber(at or index), tonumber(before or 0), tonumber(count or 0)
  if at == index - 1 then
    before, count = count, 0
  elseif at < index then
    before, count = 0, 0
  end
  if at > index then
    keep(key, string.format('%.0f %.0f %.0f', index, before, count), 2 * period)
  end
  local passed = now / period - index
  if before * (1 - passed) + count + cost <= amount then
    return 0, function()
      keep(key, string.format('%.0f %.0f %.0f', index, before, count + cost), 2 * period)
    end
  end
  if count + cost > amount then -- not in this window: the count becomes the one before
    return (index + 1 + math.max(0, 1 - (amount - cost) / count)) * period - now
  end
  return (index + 1 - (amount - count - cost) / before) * period - now
end

-- The time of each call, the newest first; an instance with a smaller limit drops none that others count.
function strategies.moving_window(key, amount, period)
  local newest = redis.call('LINDEX', key, 0)
  if newest and tonumber(newest) > now then
    for i, at in ipairs(redis.call('LRANGE', key, 0, -1)) do
      if tonumber(at) > now then redis.call('LSET', key, i - 1, string.format('%.0f', now)) end
    end
  end
  local leaves = redis.call('LINDEX', key, amount - cost)
  if leaves and tonumber(leaves) + period > now then
    return tonumber(leaves) + period - now
  end
  return 0, function()
    for _ = 1, cost do redis.call('LPUSH', key, string.format('%.0f', now)) end
    while tonumber(redis.call('LINDEX', key, -1)) + period <= now do redis.call('RPOP', key) end
    redis.call('PEXPIRE', key, math.ceil(period / 1000) + 1)
  end
end

local last, longest, charges = 0, 0, {}
for i, key in ipairs(KEYS) do
  local strategy, amount, period = ARGV[3 * i - 1], tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1])
  local wait, charge = strategies[strategy](key, amount, period)
  if wait > longest then last, longest = i, wait end
  charges[i] = charge
end
if last == 0 then
  for _, charge in ipairs(charges) do charge() end
end
return {last, string.format('%.0f', math.ceil(longest))}
