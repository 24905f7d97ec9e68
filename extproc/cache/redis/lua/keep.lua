-- ARGV: BASE, key, answer, ttl_ms, size, bytes_max, began_ms (when its request began), tenant, model, pool, gpu_ms.
-- Answers { what became of it, bytes, answers, how many went for it }.
local key, answer, ttl_ms, size, bytes_max = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local began_ms = tonumber(ARGV[7])
local tenant, model, pool = ARGV[8], ARGV[9], ARGV[10]

if purged_since(began_ms, tenant, model, pool, key) then return { 'purged', total(), count(), 0 } end
sweep()
if size > bytes_max then return { 'large', total(), count(), 0 } end
drop(key)
redis.call('SET', BASE .. key, answer, 'PX', ttl_ms)
redis.call('HSET', M, key, cmsgpack.pack({
  size = size, born = now_ms, gpu = tonumber(ARGV[11]), hits = 0, tenant = tenant, model = model, pool = pool,
}))
redis.call('HINCRBY', M, 't', size)
redis.call('ZADD', U, now_us, key)
redis.call('ZADD', X, now_ms + ttl_ms, key)
local gone = evict(bytes_max)
local lives_ms = math.max(ttl_ms, redis.call('PTTL', M)) + SLACK_MS
for _, index in ipairs({ M, U, X }) do redis.call('PEXPIRE', index, lives_ms) end
return { 'kept', total(), count(), gone }
