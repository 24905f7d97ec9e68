-- The figures of all scopes, in one slot: KEYS bytes, answers (hashes by scope). ARGV: scope, bytes, answers, and so on.
-- Answers { bytes of all, the scope with most, its bytes }.
local B, N = KEYS[1], KEYS[2]
for at = 1, #ARGV, 3 do
  if tonumber(ARGV[at + 1]) > 0 then
    redis.call('HSET', B, ARGV[at], ARGV[at + 1])
    redis.call('HSET', N, ARGV[at], ARGV[at + 2])
  else
    redis.call('HDEL', B, ARGV[at])
    redis.call('HDEL', N, ARGV[at])
  end
end
local sum, most, whose = 0, -1, ''
local found = redis.call('HGETALL', B)
for at = 1, #found, 2 do
  local bytes = tonumber(found[at + 1]) or 0
  sum = sum + bytes
  if bytes > most then most, whose = bytes, found[at] end
end
return { sum, whose, math.max(most, 0) }
