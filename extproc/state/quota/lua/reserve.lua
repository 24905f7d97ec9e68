-- Take a reservation from every bucket or from none, and lend the service a share for the next ones.
-- op: id, attempt, service, ttl (ms), epoch, lease_ms, lend (and take back what is given), and how:
--   ask    check and take            lease  taken from a lease already: enter it
--   force  taken without asking      lend   only lend, or give back
-- op.b: {{bucket, cost, burst, extra_cost, lease_want, lease_back, unit, unit_cost, extra_unit_cost}}
-- op.c: {{scope, most, lease_want, back, held}}; held: what is lent, where the service had better say it than
-- we (an answer was lost), else -1
-- Returns ok, epoch, wait_ns, index of what was in the way, borrowed indexes, debts, leases, slots, in flight.

local how = op.how
local known = op.id ~= '' and redis.call('HEXISTS', R, op.id) == 1
local over = false
if op.id ~= '' then
  local ending = redis.call('HGET', E, op.id)
  if ending == 'u' and how == 'lease' then
    redis.call('HSET', E, op.id, 's')
    if same_epoch then
      for _, b in ipairs(op.b) do add_debt(b[1], -b[2]) end
    end
    for _, c in ipairs(op.c) do lend_places(op.service, c[1], -1) end
  end
  over = ending or redis.call('HEXISTS', E, op.id .. '#' .. op.attempt) == 1
end

-- What the service has left of its lease comes back first.
if op.lend then
  for _, b in ipairs(op.b) do
    if same_epoch then add_debt(b[1], -b[6]) end
  end
  for _, c in ipairs(op.c) do
    if c[5] >= 0 then
      lend_places(op.service, c[1], c[5], true)
    elseif c[4] > 0 then
      lend_places(op.service, c[1], -c[4])
    end
  end
end

local ok, wait, worst, borrowed = 1, 0, -1, {}
local debts = {}
for i, b in ipairs(op.b) do debts[i] = debt_of(b[1]) end

local function enter(voluntary)
  local entry = {n = op.attempt, b = {}, c = {}}
  for i, b in ipairs(op.b) do
    local lent = borrowed[i]
    if lent then
      add_debt(b[1] .. '~', b[4])
      entry.b[i] = {b[1] .. '~', b[4], b[7], b[9]}
    else
      if voluntary then
        debts[i] = debts[i] + b[2]
        set_debt(b[1], debts[i])
      end
      entry.b[i] = {b[1], b[2], b[7], b[8]}
    end
  end
  for i, c in ipairs(op.c) do entry.c[i] = c[1] end
  fly(entry.c, 1)
  redis.call('HSET', R, op.id, cmsgpack.pack(entry))
  redis.call('ZADD', X, now_ms + op.ttl, op.id)
  stats('reserved')
end

if how == 'ask' and not known and not over then
  for i, b in ipairs(op.b) do
    local cost, burst = b[2], b[3]
    if cost > 0 and debts[i] > 0 then
      local need = cost <= burst and debts[i] + cost - burst or debts[i]
      if need > 0 and b[4] > 0 then
        local debt = debt_of(b[1] .. '~')
        local extra = b[4] <= burst and debt + b[4] - burst or debt
        if debt <= 0 or extra <= 0 then
          need = 0
          borrowed[i] = true
        else
          need = math.min(need, extra)
        end
      end
      if need > wait then wait, worst = need, i - 1 end
    end
  end
  for i, c in ipairs(op.c) do
    if c[2] >= 0 and in_flight(c[1]) + places_lent(c[1]) >= c[2] and wait < 1000000000 then
      wait, worst = 1000000000, #op.b + i - 1
    end
  end
  if wait > 0 then
    ok, borrowed = 0, {}
  else
    enter(true)
  end
elseif (how == 'lease' or how == 'force') and not known and not over then
  if how == 'lease' then
    for _, c in ipairs(op.c) do lend_places(op.service, c[1], -1) end
  end
  enter(how == 'force' or not same_epoch)
end

-- Lend at most half of what is left, so that one service's thrift is not another's want; nothing after a
-- refusal, so that what comes back to the bucket adds up until it suffices for somebody.
local lend = op.lend and ok == 1
local leases, lent, flying = {}, {}, {}
for i, b in ipairs(op.b) do
  local lease = 0
  if lend and b[5] > 0 then
    lease = math.max(0, math.min(b[5], math.floor((b[3] - debts[i]) / 2)))
    if lease > 0 then
      debts[i] = debts[i] + lease
      set_debt(b[1], debts[i])
    end
  end
  leases[i] = lease
end
for i, c in ipairs(op.c) do
  flying[i] = in_flight(c[1])
  lent[i] = 0
  if c[2] >= 0 and lend then
    local left = c[2] - flying[i] - places_lent(c[1])
    lent[i] = math.max(0, math.min(c[3], math.floor(left / 2)))
    lend_places(op.service, c[1], lent[i])
  end
end

local loans = {}
for i = 1, #op.b do loans[i] = borrowed[i] and 1 or 0 end
keep()
return cmsgpack.pack({ok, epoch, wait, worst, loans, debts, leases, lent, flying})
