-- ARGV: BASE, tenant, model, pool, key ('' for any). Answers to requests that began before now are not kept.
note_purge({ tenant = ARGV[2], model = ARGV[3], pool = ARGV[4], key = ARGV[5] })
return 1
