-- ARGV: ROOT, '', '', BY, tenant, model, pool, key ('' for any), '1' for what groups share alone. Answers to requests
-- that began before now are not kept. At the bound the two oldest become one that means every answer.
local PURGES_MAX, PURGE_MS = 64, 86400000
redis.call('RPUSH', P, cmsgpack.pack({
  at = now_ms, tenant = ARGV[5], model = ARGV[6], pool = ARGV[7], key = ARGV[8], shared = ARGV[9],
}))
while redis.call('LLEN', P) > PURGES_MAX do
  redis.call('LPOP', P)
  local fine, first = pcall(cmsgpack.unpack, redis.call('LINDEX', P, 0))
  redis.call('LSET', P, 0, cmsgpack.pack({ at = fine and tonumber(first.at) or now_ms }))
end
redis.call('PEXPIRE', P, PURGE_MS)
return 1
