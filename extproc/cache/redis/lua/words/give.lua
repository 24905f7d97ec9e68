-- ARGV: ROOT, SCOPE, ID, BY, key, version. Answers 1 where it is still kept, and counts that as use; else 0.
local meta = meta_of(ID, ARGV[5])
if not meta or meta.version ~= ARGV[6] then return 0 end
-- A server without room still answers; one that may not be written to does not.
local done = redis.pcall('ZADD', at('u', ID), 'XX', now_us, ARGV[5])
if type(done) == 'table' and done.err and not string.find(done.err, 'OOM', 1, true) then return done end
return 1
