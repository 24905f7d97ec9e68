-- ARGV: BASE, tenant, model, pool, key ('' for any). Answers to requests that began before now are not kept.
-- At the bound the two oldest become one that means every answer.
local PURGES_MAX, PURGE_MS = 64, 86400000
redis.call('RPUSH', P, cmsgpack.pack({ at = now_ms, tenant = ARGV[2], model = ARGV[3], pool = ARGV[4], key = ARGV[5] }))
while redis.call('LLEN', P) > PURGES_MAX do
  redis.call('LPOP', P)
  local fine, first = pcall(cmsgpack.unpack, redis.call('LINDEX', P, 0))
  redis.call('LSET', P, 0, cmsgpack.pack({ at = fine and tonumber(first.at) or now_ms }))
end
redis.call('PEXPIRE', P, PURGE_MS)
return 1
