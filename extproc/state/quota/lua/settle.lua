-- End a reservation, once, or keep it alive.
-- op: id, attempt, epoch, ttl, own, and how:
--   settle  charge or refund the difference to the real counts     cancel  give all back     renew  it runs
-- op.b: {{bucket, paid, unit, unit_cost}}: what the service knows; Redis's own entry goes before it.
-- op.c: the scopes, when a place of a lease was taken and never entered: it goes back.
-- op.a: real counts by unit. op.own: this service made the reservation, so nobody will enter it later.
-- Returns whether this call ended it. Counts at rest: reserved = settled + expired + cancelled; 'late' of the
-- expired were settled after all, 'unknown' were charged for a service that entered nothing.

local packed = redis.call('HGET', R, op.id)
local entry = packed and cmsgpack.unpack(packed) or nil
local done = 0

local function difference(buckets, paid)
  for _, b in ipairs(buckets) do
    local real = math.ceil(op.a[b[3] + 1] * b[4] - 1e-6)
    add_debt(b[1], real - (paid and b[2] or 0))
  end
end

local function place_back()
  for _, scope in ipairs(op.c) do lend_places(op.service, scope, -1) end
end

if op.how == 'renew' then
  if entry then
    -- What a running request has used beyond its reservation is charged now.
    local grown = false
    for _, b in ipairs(entry.b) do
      local real = math.ceil(op.a[b[3] + 1] * b[4] - 1e-6)
      if real > b[2] then
        add_debt(b[1], real - b[2])
        b[2] = real
        grown = true
      end
    end
    if grown then redis.call('HSET', R, op.id, cmsgpack.pack(entry)) end
    redis.call('ZADD', X, now_ms + op.ttl, op.id)
    done = 1
  end
elseif op.how == 'cancel' then
  local attempt = op.id .. '#' .. op.attempt
  if redis.call('HEXISTS', E, attempt) == 0 and redis.call('HEXISTS', E, op.id) == 0 then
    if entry and entry.n == op.attempt then
      for _, b in ipairs(entry.b) do add_debt(b[1], -b[2]) end
      fly(entry.c, -1)
      drop(op.id)
      stats('cancelled')
    elseif not entry and same_epoch then
      for _, b in ipairs(op.b) do add_debt(b[1], -b[2]) end
      place_back()
    end
    ended(attempt, 'c')
    done = 1
  end
else
  local ending = redis.call('HGET', E, op.id)
  if entry then
    difference(entry.b, true)
    fly(entry.c, -1)
    drop(op.id)
    ended(op.id, 's')
    stats('settled')
    done = 1
  elseif not ending then
    difference(op.b, same_epoch)
    ended(op.id, op.own and 's' or 'u')
    place_back()
    if op.own then
      stats('reserved')
      stats('settled')
    else
      stats('unknown')
    end
    done = 1
  elseif string.sub(ending, 1, 1) == 'x' then
    difference(cmsgpack.unpack(string.sub(ending, 2)).b, true)
    ended(op.id, 's')
    stats('late')
    done = 1
  elseif ending == 'u' and op.own then
    -- Charged in full by who did not know it: what its lease paid comes back.
    if same_epoch then
      for _, b in ipairs(op.b) do add_debt(b[1], -b[2]) end
    end
    place_back()
    ended(op.id, 's')
  end
end
keep()
return done
