-- A request that was sent to another pool, and is tried at home where that fails: what is shown to whom. A
-- try that fails leaves the request's headers as it made them (Envoy 1.40), but its body as it came. So the first
-- try notes what the next ones need, and they undo what the first has done.

local OBSERVED, DECISION = "@OBSERVED_NAMESPACE@", "@DECISION_NAMESPACE@"
local OWN = "steersman.returning"
-- A try without an answer is given up after so long.
local FIRST_BYTE_MS = @FIRST_BYTE_MS@
-- How each pool is reached: the header of its key, what stands before its paths, its own headers.
local THERE = @THERE@
local HOME = @HOME@

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

-- Its model's name is another there; `where` is where it stands, how long it is, and the one at home.
local function renamed(handle, where)
  local at, length, name = where:match("^(%d+) (%d+) (.*)$")
  local body = at and handle:body()
  if body then
    local bytes = body:getBytes(0, body:length())
    local size = body:setBytes(bytes:sub(1, at) .. name .. bytes:sub(at + length + 1))
    handle:headers():replace("content-length", tostring(size))
  end
end

local function at_home(handle, headers, own, key)
  for name in pairs(THERE.headers) do
    headers:remove(name)
  end
  if THERE.key then
    headers:remove(THERE.key)
  end
  -- What proves its tenant there is no engine's to see.
  headers:remove("@SITE_HEADER@")
  shown(headers, HOME, key)
  headers:replace(":authority", own.host)
  headers:replace(":path", own.path)
  local told = metadata(handle)
  if not (told:get(OBSERVED) or {})["@FAILED_THERE_KEY@"] then
    local noted = told:get(OWN)
    local late = handle:timestamp() - own.at >= FIRST_BYTE_MS
    told:set(OBSERVED, "@FAILED_THERE_KEY@", noted.status or (late and "@FAILED_LATE@" or "@FAILED_LOST@"))
    if noted.provider and noted.provider ~= "@PROVIDER_SILENT@" then
      told:set(OBSERVED, "@PROVIDER_THERE_KEY@", noted.provider)
    end
  end
  -- The client is told of no other pool, and of no other model.
  told:set(DECISION, "@SPILLED_HEADER@", "")
  local where = (told:get(DECISION) or {})["@HOME_MODEL_KEY@"]
  told:set(DECISION, "@ANSWERED_MODEL_HEADER@", where and where:match('^%d+ %d+ "([^"\\]*)"$') or "")
  if where then
    renamed(handle, where)
  end
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local there, home = headers:get("@KEY_THERE_HEADER@"), headers:get("@KEY_HOME_HEADER@")
  headers:remove("@KEY_THERE_HEADER@")
  headers:remove("@KEY_HOME_HEADER@")
  headers:remove("@PATH_PREFIX_HEADER@")
  local own = (metadata(handle):get(OWN) or {})["first"]
  if own then
    at_home(handle, headers, own, home)
    return
  end
  local path = headers:get(":path")
  if path:sub(1, #THERE.prefix) == THERE.prefix then
    path = path:sub(#THERE.prefix + 1)
  end
  metadata(handle):set(OWN, "first", {
    host = headers:get(":authority"),
    path = HOME.prefix .. path,
    at = handle:timestamp(),
  })
  shown(headers, THERE, there)
end

-- Whether there is another try nobody knows here: the next one, if it comes, finds what is noted.
function envoy_on_response(handle)
  local told = metadata(handle)
  local seen = told:get(OBSERVED) or {}
  if seen["@FAILED_THERE_KEY@"] then
    return
  end
  local headers = handle:headers()
  told:set(OWN, "status", headers:get(":status"))
  told:set(OWN, "provider", (headers:get("@PROVIDER_HEADER@") or ""):sub(1, 256))
end
