-- A request that is tried in one pool, and in a second one where that fails: at a provider and then at home, or
-- at home and then at a provider. What is shown to whom. A try that fails leaves the request's headers as it
-- made them (Envoy 1.40), but its body as it came. So the first tries note what the later ones need, and those
-- undo what the first have done.

local OBSERVED, DECISION = "@OBSERVED_NAMESPACE@", "@DECISION_NAMESPACE@"
local OWN = "steersman.crossing"
-- A try without an answer is given up after so long.
local FIRST_BYTE_MS = @FIRST_BYTE_MS@
-- How each pool is reached: the header of its key, the name under which that comes here, what stands before its
-- paths, its own headers.
local FIRST = @FIRST@
local SECOND = @SECOND@
-- How many tries are the first pool's; under which name it is noted that they failed; whether what that pool said
-- of its rate limits is; and why the client is told that another pool has served it, "" where none has.
local TRIES, FAILED, NOTES_PROVIDER, SPILLED = @TRIES@, "@FAILED@", @NOTES_PROVIDER@, "@SPILLED@"

local function metadata(handle)
  return handle:streamInfo():dynamicMetadata()
end

local function shown(headers, side, key)
  for name, value in pairs(side.headers) do
    headers:replace(name, value)
  end
  if side.key and key then
    headers:replace(side.key, key)
  end
end

-- Its model's name is another in the second pool; `where` is where it stands, how long it is, and the one there.
local function renamed(handle, where)
  local at, length, name = where:match("^(%d+) (%d+) (.*)$")
  local body = at and handle:body()
  if body then
    local bytes = body:getBytes(0, body:length())
    local size = body:setBytes(bytes:sub(1, at) .. name .. bytes:sub(at + length + 1))
    handle:headers():replace("content-length", tostring(size))
  end
end

local function second(handle, headers, own, key)
  for name in pairs(FIRST.headers) do
    headers:remove(name)
  end
  if FIRST.key then
    headers:remove(FIRST.key)
  end
  -- What proves its tenant at another site is no engine's to see.
  headers:remove("@SITE_HEADER@")
  shown(headers, SECOND, key)
  headers:replace(":authority", own.host)
  headers:replace(":path", own.path)
  local told = metadata(handle)
  if not (told:get(OBSERVED) or {})[FAILED] then
    local noted = told:get(OWN)
    local late = handle:timestamp() - own.at >= FIRST_BYTE_MS
    told:set(OBSERVED, FAILED, noted.status or (late and "@FAILED_LATE@" or "@FAILED_LOST@"))
    if NOTES_PROVIDER and noted.provider and noted.provider ~= "@PROVIDER_SILENT@" then
      told:set(OBSERVED, "@PROVIDER_THERE_KEY@", noted.provider)
    end
  end
  -- The client is told of the pool and the model that serve it now.
  told:set(DECISION, "@SPILLED_HEADER@", SPILLED)
  local where = (told:get(DECISION) or {})["@SECOND_MODEL_KEY@"]
  told:set(DECISION, "@ANSWERED_MODEL_HEADER@", where and where:match('^%d+ %d+ "([^"\\]*)"$') or "")
  if where then
    renamed(handle, where)
  end
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local first_key, second_key = headers:get(FIRST.told), headers:get(SECOND.told)
  headers:remove(FIRST.told)
  headers:remove(SECOND.told)
  headers:remove("@PATH_PREFIX_HEADER@")
  local own = (metadata(handle):get(OWN) or {})["first"]
  if own and own.tries >= TRIES then
    second(handle, headers, own, second_key)
    return
  end
  local path = headers:get(":path")
  if path:sub(1, #FIRST.prefix) == FIRST.prefix then
    path = path:sub(#FIRST.prefix + 1)
  end
  metadata(handle):set(OWN, "first", {
    host = own and own.host or headers:get(":authority"),
    path = SECOND.prefix .. path,
    at = handle:timestamp(),
    tries = (own and own.tries or 0) + 1,
  })
  shown(headers, FIRST, first_key)
end

-- Whether there is another try nobody knows here: the next one, if it comes, finds what is noted.
function envoy_on_response(handle)
  local told = metadata(handle)
  local seen = told:get(OBSERVED) or {}
  if seen[FAILED] then
    return
  end
  local headers = handle:headers()
  told:set(OWN, "status", headers:get(":status"))
  told:set(OWN, "provider", (headers:get("@PROVIDER_HEADER@") or ""):sub(1, 256))
end
