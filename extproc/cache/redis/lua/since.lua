-- ARGV: BASE, key, began_ms (when its request began), tenant, model, pool. Answers 1 where it was purged since, else 0.
return purged_since(tonumber(ARGV[3]), ARGV[4], ARGV[5], ARGV[6], ARGV[2]) and 1 or 0
