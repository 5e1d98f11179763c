-- One circuit as a fleet shares it. Each verb is one atomic step; the server's TIME is the only clock.
--
-- KEYS[1]  a hash: state (open or closed), since (when it came to that), fence, and while it is open:
--          token and expires of the probe that is lent (0: none), successes of earlier ones.
-- ARGV     verb, circuit, channel, then numbers: recovery timeout, length of a lease, success threshold,
--          token of a probe (0: none), age of an opening or a closing. Times are in microseconds.
-- Returns  {state, fence, wait, token}: the state afterwards ("absent": nothing is known), the time
--          until a probe may be had, and the token of the probe that was granted (0: none, -1: it is
--          lent to another, and the time is that of its lease).
--
-- Every transition and every lease takes a higher fence; a lease's is its token. Fences start at the
-- time of day, so that they go on growing where the key has expired or the store lost its data.

local key, verb, circuit, channel = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local recovery, lease, threshold = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local token, age = tonumber(ARGV[7]), tonumber(ARGV[8])
local KEEP = 3600 * 1000000

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local held = redis.call('HMGET', key, 'state', 'since', 'fence', 'token', 'expires', 'successes')
local state = held[1] or 'absent'
local since, fence, lent = tonumber(held[2] or 0), tonumber(held[3] or 0), tonumber(held[4] or 0)
local expires, successes = tonumber(held[5] or 0), tonumber(held[6] or 0)

if since > now then  -- the clock was set back: a time to come is taken for one long ago
  since, expires = 0, 0
end

local function text(number)
  return string.format('%.0f', number)
end

local function save()
  redis.call('HSET', key, 'state', state, 'since', text(since), 'fence', text(fence),
    'token', text(lent), 'expires', text(expires), 'successes', text(successes))
  redis.call('PEXPIRE', key, text(math.max(KEEP, 10 * recovery, 10 * lease) / 1000))
end

local function raise_fence()
  fence = math.max(fence + 1, now)
end

local function wait()
  return state == 'open' and math.max(0, since + recovery - now) or 0
end

local function move(to, at)
  state, since, lent, expires, successes = to, at, 0, 0, 0
  raise_fence()
  save()
  redis.call('PUBLISH', channel, table.concat({text(fence), state, text(wait()), circuit}, ' '))
end

local function answer(seconds, granted)
  return {state, fence, seconds, granted}
end

local verbs = {}

function verbs.look()
  return answer(wait(), 0)
end

-- A circuit opened `age` ago: because the probe `token` failed, if one is given. A stale token changes
-- nothing, nor does an opening that came before the last transition.
function verbs.trip()
  local holds = token > 0 and token == lent
  local later = token == 0 and now - age > since
  if state == 'absent' or holds or later then
    move('open', now - age)
  end
  return answer(wait(), 0)
end

-- A circuit closed `age` ago, by probes that its process sent while it did not reach the store. Kept also
-- where nothing is known: another process may still tell of the opening before.
function verbs.close()
  if state ~= 'closed' and now - age > since then
    move('closed', now - age)
  end
  return answer(wait(), 0)
end

-- An opening that the store was told of `age` ago, and may have lost with its data.
function verbs.recall()
  if state == 'absent' then
    move('open', now - age)
  end
  return answer(wait(), 0)
end

-- Only an open circuit asks: where nothing is known, its word is taken for it.
function verbs.probe()
  if state == 'absent' then
    state, since = 'open', now - recovery
  end
  if state == 'closed' or wait() > 0 then
    return answer(wait(), 0)
  end
  if lent > 0 and expires > now then
    return answer(expires - now, -1)
  end
  raise_fence()
  lent, expires = fence, now + lease
  save()
  return answer(0, lent)
end

-- A probe that came late, and is sent only now.
function verbs.used()
  if token == lent then
    expires = now + lease
    save()
  end
  return answer(wait(), 0)
end

function verbs.succeeded()
  if token == lent then
    lent, successes = 0, successes + 1
    if successes >= threshold then
      move('closed', now)
    else
      save()
    end
  end
  return answer(wait(), 0)
end

function verbs.released()
  if token == lent then
    lent = 0
    save()
  end
  return answer(wait(), 0)
end

return verbs[verb]()
