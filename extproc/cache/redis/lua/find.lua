-- ARGV: BASE, key, '1' where the look counts as use. Answers { answer, age_ms, left_ms, gpu_ms, hits }, or nothing.
-- What its place in the index is lost of is told with an age of -1.
local key = ARGV[2]
local answer = redis.call('GET', BASE .. key)
if not answer then return false end
local meta = meta_of(key)
if not meta then return { answer, '-1', '0', '0', '0' } end
local hits = tonumber(meta.hits) or 0
if ARGV[3] == '1' then
  meta.hits = hits + 1
  -- A server without room still answers; one that may not be written to does not.
  for _, command in ipairs({ { 'HSET', M, key, cmsgpack.pack(meta) }, { 'ZADD', U, 'XX', now_us, key } }) do
    local done = redis.pcall(unpack(command))
    if type(done) == 'table' and done.err and not string.find(done.err, 'OOM', 1, true) then return done end
  end
end
return {
  answer, string.format('%.0f', math.max(0, now_ms - meta.born)),
  string.format('%.0f', redis.call('PTTL', BASE .. key)), tostring(tonumber(meta.gpu) or 0), string.format('%.0f', hits),
}
