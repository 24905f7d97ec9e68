-- What the scripts of kept questions share. All scopes are in one slot of a cluster: they are few, and bounded together.
--   BYTES  hash: a scope's hash -> its bytes, '' -> those of all       NAMES  hash: a scope's hash -> its name
--   P  list: purges, msgpack, the oldest first                        L  stream: what has changed, for other services
--   ROOT:m:ID  hash: key -> meta (msgpack)        ROOT:e:ID  hash: key -> the question, sealed
--   ROOT:u:ID  zset: keys by last use, us         ROOT:k:ID:key  list: checks of a question, sealed
--   ROOT:w:ID  list: checks of answers that could have been given, sealed
-- meta: size, born (ms of its last answer), tenant, model, pool, version.
local BYTES, NAMES, P, L = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local ROOT, SCOPE, ID, BY = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local LOG_MAX, EVICT_MAX, SLACK_MS, CHECKS_MAX, WINDOW_MAX = 10000, 1024, 60000, 64, 1000
local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now_ms = math.floor(now_us / 1000)

local function at(part, id) return ROOT .. ':' .. part .. ':' .. id end
local function checks_at(id, key) return at('k', id) .. ':' .. key end

-- What is none of ours in these places would stop every script.
local function ours(place, kind)
  local is = redis.call('TYPE', place).ok
  if is ~= kind and is ~= 'none' then redis.call('DEL', place) end
end
ours(BYTES, 'hash') ours(NAMES, 'hash') ours(P, 'list') ours(L, 'stream')
ours(at('m', ID), 'hash') ours(at('e', ID), 'hash') ours(at('u', ID), 'zset') ours(at('w', ID), 'list')

local function meta_of(id, key)
  local raw = redis.call('HGET', at('m', id), key)
  if not raw then return nil end
  local fine, meta = pcall(cmsgpack.unpack, raw)
  if fine and type(meta) == 'table' and tonumber(meta.size) and tonumber(meta.born) and type(meta.version) == 'string' then
    return meta
  end
  return nil
end

local function log(kind, scope, key, version, by, check, sample)
  redis.call('XADD', L, 'MAXLEN', '~', LOG_MAX, '*', 'k', kind, 's', scope, 'i', key, 'n', version, 'b', by,
    'v', check or '', 'w', sample or '')
end

local function weigh(id, by)
  redis.call('HINCRBY', BYTES, '', by)
  return redis.call('HINCRBY', BYTES, id, by)
end

local function tidy(id)
  if redis.call('EXISTS', at('m', id)) == 1 then return end
  redis.call('DEL', at('e', id), at('u', id), at('w', id))
  local left = tonumber(redis.call('HGET', BYTES, id) or '0') or 0
  -- Minus nothing is no integer to Redis.
  if left ~= 0 then redis.call('HINCRBY', BYTES, '', -left) end
  redis.call('HDEL', BYTES, id)
  redis.call('HDEL', NAMES, id)
end

local function drop(id, key, by)
  local meta = meta_of(id, key)
  redis.call('HDEL', at('e', id), key)
  redis.call('ZREM', at('u', id), key)
  redis.call('DEL', checks_at(id, key))
  if redis.call('HDEL', at('m', id), key) == 0 then return false end
  log('drop', redis.call('HGET', NAMES, id) or '', key, meta and meta.version or '', by)
  if meta then weigh(id, -meta.size) end
  tidy(id)
  return true
end

local function oldest(id) return redis.call('ZRANGE', at('u', id), 0, 0)[1] end

local function meant(said, its) return not said or said == '' or said == its end

-- Whether an answer of this scope whose request began then was purged since.
local function purged_since(began_ms, tenant, model, pool, key)
  for _, raw in ipairs(redis.call('LRANGE', P, 0, -1)) do
    local fine, order = pcall(cmsgpack.unpack, raw)
    if fine and type(order) == 'table' and tonumber(order.at) and began_ms <= order.at and meant(order.tenant, tenant)
      and meant(order.model, model) and meant(order.pool, pool) and meant(order.key, key)
      and (order.shared ~= '1' or string.sub(SCOPE, 1, 6) == 'group:') then
      return true
    end
  end
  return false
end
