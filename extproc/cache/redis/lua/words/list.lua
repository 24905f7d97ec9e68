-- ARGV: ROOT, SCOPE, ID, BY. Answers { keys and metas, the scope's window }.
tidy(ID)
return { redis.call('HGETALL', at('m', ID)), redis.call('LRANGE', at('w', ID), 0, -1) }
