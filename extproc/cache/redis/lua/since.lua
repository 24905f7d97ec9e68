-- ARGV: BASE, key, age_ms of its request, tenant, model, pool. Answers 1 where it was purged since, else 0.
return purged_since(now_ms - tonumber(ARGV[3]), ARGV[4], ARGV[5], ARGV[6], ARGV[2]) and 1 or 0
