-- ARGV: ROOT, '', '', BY, tenant, model, pool, key ('' for any), '1' for what groups share alone. Answers to requests
-- that began before now are not kept.
note_purge({ tenant = ARGV[5], model = ARGV[6], pool = ARGV[7], key = ARGV[8], shared = ARGV[9] })
return 1
