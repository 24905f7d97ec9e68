-- ARGV: BASE, key, milliseconds of a replica: told once, when the request's record has come.
local meta = meta_of(ARGV[2])
if meta and (tonumber(meta.gpu) or 0) == 0 then
  meta.gpu = tonumber(ARGV[3])
  redis.call('HSET', M, ARGV[2], cmsgpack.pack(meta))
end
return 1
