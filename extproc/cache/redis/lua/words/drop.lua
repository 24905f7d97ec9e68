-- ARGV: ROOT, SCOPE, ID, BY, keys that go. Answers how many were there.
local gone = 0
for i = 5, #ARGV do
  if drop(ID, ARGV[i], BY) then gone = gone + 1 end
end
return gone
