-- ARGV: BASE, bytes that may stay. What has ended goes first. Answers { bytes, answers, how many went for room }.
sweep()
local gone = evict(tonumber(ARGV[2]))
return { total(), count(), gone }
