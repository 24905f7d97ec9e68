-- ARGV: ROOT, SCOPE, ID, BY, keys. Answers of each { question, age_ms, version, checks }, or nothing.
local found = {}
for i = 5, #ARGV do
  local key = ARGV[i]
  local meta, question = meta_of(ID, key), redis.call('HGET', at('e', ID), key)
  if meta and question then
    ours(checks_at(ID, key), 'list')
    local age = string.format('%.0f', math.max(0, now_ms - meta.born))
    found[#found + 1] = { question, age, meta.version, redis.call('LRANGE', checks_at(ID, key), 0, -1) }
  else
    found[#found + 1] = false
  end
end
return found
