-- What both scripts share. One tenant's books, in one slot of a cluster (the tenant is the hash tag):
--   B  hash: 'epoch'; 'd:BUCKET' = 'at_us debt_ns'; 'c:SCOPE' = in flight; 'f:SCOPE' = slots lent to services;
--      't:WHAT' = counts
--   R  hash: reservation id -> entry (msgpack)      X  zset: the same ids by deadline, ms
--   E  hash: ended id -> how                        Z  zset: the same ids by time, ms
-- How an id ended: 's' settled by who knew it; 'u' settled by who did not, charged in full, so that a lease
-- that paid for it as well gets its money back; 'x' + entry: expired, may still be settled once.
-- An attempt of an id that was cancelled is 'id#attempt' -> 'c'.
-- A debt is the time until a bucket is empty; it runs down with the server's clock. An epoch ends when Redis forgets: what was paid in another one is void.

local ENDED_MAX, ENDED_MS, SWEEP_MAX, IDLE_MS = 65536, 3600000, 16, 7200000
local B, R, X, E, Z = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local op = cmsgpack.unpack(ARGV[1])
local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now_ms = math.floor(now_us / 1000)
local idle_ms = IDLE_MS

local epoch = redis.call('HGET', B, 'epoch')
if not epoch then
  epoch = string.format('%.0f', now_us)
  redis.call('HSET', B, 'epoch', epoch)
end
local same_epoch = op.epoch == epoch

local function debt_of(bucket)
  local value = redis.call('HGET', B, 'd:' .. bucket)
  if not value then return 0 end
  local at, debt = string.match(value, '^(%d+) (%d+)$')
  return math.max(0, tonumber(debt) - math.max(0, now_us - tonumber(at)) * 1000)
end

local function set_debt(bucket, debt)
  debt = math.max(0, debt)
  idle_ms = math.max(idle_ms, IDLE_MS + math.ceil(debt / 1000000))
  redis.call('HSET', B, 'd:' .. bucket, string.format('%.0f %.0f', now_us, debt))
end

local function add_debt(bucket, change)
  if change ~= 0 then set_debt(bucket, debt_of(bucket) + change) end
end

local function stats(what)
  redis.call('HINCRBY', B, 't:' .. what, 1)
end

local function in_flight(scope)
  return tonumber(redis.call('HGET', B, 'c:' .. scope) or 0)
end

local function fly(scopes, change)
  for _, scope in ipairs(scopes) do
    if redis.call('HINCRBY', B, 'c:' .. scope, change) <= 0 then redis.call('HDEL', B, 'c:' .. scope) end
  end
end

-- Places in flight that were lent and are not entered: {service = {places, until_ms}}, kept per scope.
local function places_lent(scope)
  local value, sum = redis.call('HGET', B, 'f:' .. scope), 0
  if value then
    for _, lease in pairs(cmsgpack.unpack(value)) do
      if lease[2] > now_ms then sum = sum + lease[1] end
    end
  end
  return sum
end

local function lend_places(service, scope, change, absolute)
  local value = redis.call('HGET', B, 'f:' .. scope)
  local all, some = {}, false
  for other, lease in pairs(value and cmsgpack.unpack(value) or {}) do
    if lease[2] > now_ms then all[other] = lease end
  end
  local places = change
  if all[service] and not absolute then places = all[service][1] + change end
  local ends = all[service] and all[service][2] or 0
  if change >= 0 then ends = now_ms + op.lease_ms end
  all[service] = places > 0 and {places, ends} or nil
  for _ in pairs(all) do some = true end
  if some then
    redis.call('HSET', B, 'f:' .. scope, cmsgpack.pack(all))
  else
    redis.call('HDEL', B, 'f:' .. scope)
  end
end

local function ended(id, how)
  redis.call('HSET', E, id, how)
  redis.call('ZADD', Z, now_ms, id)
end

local function drop(id)
  redis.call('HDEL', R, id)
  redis.call('ZREM', X, id)
end

-- Expire what was not heard of, forget what ended long ago; a few at a time, so that nobody waits long.
local function sweep()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', X, '-inf', now_ms, 'LIMIT', 0, SWEEP_MAX)) do
    local packed = redis.call('HGET', R, id)
    drop(id)
    if packed then
      fly(cmsgpack.unpack(packed).c, -1)
      ended(id, 'x' .. packed)
      stats('expired')
    end
  end
  local old = redis.call('ZRANGEBYSCORE', Z, '-inf', now_ms - ENDED_MS, 'LIMIT', 0, SWEEP_MAX)
  if #old == 0 and redis.call('ZCARD', Z) > ENDED_MAX then old = redis.call('ZRANGE', Z, 0, SWEEP_MAX - 1) end
  for _, id in ipairs(old) do
    redis.call('HDEL', E, id)
    redis.call('ZREM', Z, id)
  end
end

local function keep()
  redis.call('PEXPIRE', B, idle_ms)
  for _, key in ipairs({R, X, E, Z}) do redis.call('PEXPIRE', key, idle_ms) end
end

sweep()
