-- ARGV: ROOT, SCOPE, ID, BY, key, version, check, the same for the scope's window or '', keep_ms. Answers 1, or 0 where
-- another question is kept there by now.
local key, meta = ARGV[5], meta_of(ID, ARGV[5])
if not meta or meta.version ~= ARGV[6] then return 0 end
local place, lives_ms = checks_at(ID, key), tonumber(ARGV[9]) + SLACK_MS
ours(place, 'list')
redis.call('RPUSH', place, ARGV[7])
redis.call('LTRIM', place, -CHECKS_MAX, -1)
redis.call('PEXPIRE', place, lives_ms)
if ARGV[8] ~= '' then
  redis.call('RPUSH', at('w', ID), ARGV[8])
  redis.call('LTRIM', at('w', ID), -WINDOW_MAX, -1)
  redis.call('PEXPIRE', at('w', ID), lives_ms)
end
log('check', SCOPE, key, meta.version, BY, ARGV[7], ARGV[8])
return 1
