-- Keeps that answers to requests that began before now are not kept, of what `order` means (its fields: '' or none
-- for any). At the bound the two oldest become one that means every answer.
local PURGES_MAX, PURGE_MS = 64, 86400000
local function note_purge(order)
  order.at = now_ms
  redis.call('RPUSH', P, cmsgpack.pack(order))
  while redis.call('LLEN', P) > PURGES_MAX do
    redis.call('LPOP', P)
    local fine, first = pcall(cmsgpack.unpack, redis.call('LINDEX', P, 0))
    redis.call('LSET', P, 0, cmsgpack.pack({ at = fine and tonumber(first.at) or now_ms }))
  end
  redis.call('PEXPIRE', P, PURGE_MS)
end
