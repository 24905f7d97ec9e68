-- What all scripts share. One scope's answers (a tenant's, or a group's), in one slot of a cluster:
--   M  hash: key -> meta (msgpack), 't' -> their bytes      U  zset: keys by last use, us
--   X  zset: keys by their end, ms                          P  list: purges, msgpack, the oldest first
--   BASE .. key  string: the answer, sealed by whoever put it; it ends by itself
-- meta: size, born (ms), gpu (ms of a replica), hits, tenant, model, pool.
local M, U, X, P = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local BASE = ARGV[1]
local SWEEP_MAX, EVICT_MAX, SLACK_MS = 64, 1024, 60000
local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now_ms = math.floor(now_us / 1000)

-- What is none of ours in these places would stop every script.
for at, kind in ipairs({ 'hash', 'zset', 'zset', 'list' }) do
  local is = redis.call('TYPE', KEYS[at]).ok
  if is ~= kind and is ~= 'none' then redis.call('DEL', KEYS[at]) end
end

local function meta_of(key)
  local raw = redis.call('HGET', M, key)
  if not raw then return nil end
  local fine, meta = pcall(cmsgpack.unpack, raw)
  if fine and type(meta) == 'table' and tonumber(meta.size) and tonumber(meta.born) then return meta end
  return nil
end

local function drop(key)
  local meta = meta_of(key)
  redis.call('DEL', BASE .. key)
  redis.call('ZREM', U, key)
  redis.call('ZREM', X, key)
  if redis.call('HDEL', M, key) == 0 then return false end
  if meta then redis.call('HINCRBY', M, 't', -meta.size) end
  return true
end

local function total()
  return tonumber(redis.call('HGET', M, 't') or '0')
end

local function count()
  return math.max(0, redis.call('HLEN', M) - redis.call('HEXISTS', M, 't'))
end

local function sweep()
  for _, key in ipairs(redis.call('ZRANGEBYSCORE', X, '-inf', now_ms, 'LIMIT', 0, SWEEP_MAX)) do drop(key) end
end

local function evict(most)
  local gone = 0
  while total() > most and gone < EVICT_MAX do
    local oldest = redis.call('ZRANGE', U, 0, 0)[1]
    if not oldest then
      -- Nothing is left that these bytes could be of.
      redis.call('DEL', M, U, X)
      break
    end
    drop(oldest)
    gone = gone + 1
  end
  return gone
end

local function meant(said, its) return not said or said == '' or said == its end

-- Whether an answer whose request began then was purged since.
local function purged_since(began_ms, tenant, model, pool, key)
  for _, raw in ipairs(redis.call('LRANGE', P, 0, -1)) do
    local fine, order = pcall(cmsgpack.unpack, raw)
    if fine and type(order) == 'table' and tonumber(order.at) and began_ms <= order.at and meant(order.tenant, tenant)
      and meant(order.model, model) and meant(order.pool, pool) and meant(order.key, key) then
      return true
    end
  end
  return false
end
