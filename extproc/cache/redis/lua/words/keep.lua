-- ARGV: ROOT, SCOPE, ID, BY, key, question, size, version, began_ms of its request, tenant, model, pool, entries_max,
-- bytes_max, keep_ms. With the version that is kept its checks stay. Answers { what became of it, how many went for it }.
local key, question, size, version = ARGV[5], ARGV[6], tonumber(ARGV[7]), ARGV[8]
local entries_max, bytes_max, keep_ms = tonumber(ARGV[13]), tonumber(ARGV[14]), tonumber(ARGV[15])
if purged_since(tonumber(ARGV[9]), ARGV[10], ARGV[11], ARGV[12], key) then return { 'purged', 0 } end
if size > bytes_max then return { 'large', 0 } end
local before = meta_of(ID, key)
if before and before.version == version then
  weigh(ID, -before.size)
else
  drop(ID, key, '')
end
redis.call('HSET', NAMES, ID, SCOPE)
redis.call('HSET', at('e', ID), key, question)
redis.call('HSET', at('m', ID), key, cmsgpack.pack({
  size = size, born = now_ms, tenant = ARGV[10], model = ARGV[11], pool = ARGV[12], version = version,
}))
redis.call('ZADD', at('u', ID), now_us, key)
weigh(ID, size)
log('keep', SCOPE, key, version, BY)
local gone = 0
while redis.call('HLEN', at('m', ID)) > entries_max and gone < EVICT_MAX do
  local first = oldest(ID)
  if not first then break end
  drop(ID, first, '')
  gone = gone + 1
end
while (tonumber(redis.call('HGET', BYTES, '') or '0') or 0) > bytes_max and gone < EVICT_MAX do
  local most, whose = -1, nil
  local found = redis.call('HGETALL', BYTES)
  for i = 1, #found, 2 do
    local bytes = tonumber(found[i + 1]) or 0
    if found[i] ~= '' and bytes > most then most, whose = bytes, found[i] end
  end
  if not whose then
    redis.call('HSET', BYTES, '', 0)
    break
  end
  local first = oldest(whose)
  if first then
    drop(whose, first, '')
    gone = gone + 1
  else
    redis.call('DEL', at('m', whose))
    tidy(whose)
  end
end
local lives_ms = math.max(keep_ms, redis.call('PTTL', at('m', ID))) + SLACK_MS
for _, part in ipairs({ 'm', 'e', 'u', 'w' }) do redis.call('PEXPIRE', at(part, ID), lives_ms) end
redis.call('PEXPIRE', checks_at(ID, key), lives_ms)
return { 'kept', gone }
