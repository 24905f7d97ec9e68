-- ARGV: BASE, keys that go. Answers { how many were there, bytes, answers }.
local gone = 0
for at = 2, #ARGV do
  if drop(ARGV[at]) then gone = gone + 1 end
end
return { gone, total(), count() }
