-- When the first body chunk of a response came, and what it says: Envoy's response headers are not
-- the first token, because an engine may send them long before it begins to generate.
--
-- One call per response. The loop is left at the first chunk, so that every later one passes by
-- without entering Lua; nothing is buffered. Lines that begin with ":" are SSE comments, which
-- engines send to keep a waiting connection alive, and are not output.

-- An engine that refuses inside a 200 says so in its first event; what follows is not looked into.
local HEAD_BYTES = @HEAD_BYTES@

local EVENT_OPTIONS = {
  -- Nobody waits for the answer: the chunk passes on at once, whatever becomes of the service.
  ["asynchronous"] = true,
  ["timeout_ms"] = @EVENT_TIMEOUT_MS@,
  ["send_xff"] = false,
  ["trace_sampled"] = false,
}

local function streams(handle)
  local headers = handle:headers()
  local type = headers:get("content-type") or ""
  return headers:get(":status") == "200" and type:sub(1, 17):lower() == "text/event-stream"
end

-- A quote inside generated text is escaped, so that no text can look like this object's beginning.
local function refuses(head)
  local at = head:find('data:%s*{%s*"error"%s*:')
  return at ~= nil and head:find("overloaded", at, true) ~= nil
end

-- Tells the service that decided: a gRPC unary call whose message is empty.
local function tell(handle, refused)
  local decision = handle:streamInfo():dynamicMetadata():get("@DECISION_NAMESPACE@")
  local id = decision and decision["@RESERVATION_KEY@"]
  local cluster = decision and decision["@EVENT_CLUSTER_KEY@"]
  if not id or not cluster then
    return
  end
  handle:httpCall(cluster, {
    [":method"] = "POST",
    [":path"] = "@EVENT_PATH@",
    [":authority"] = cluster,
    ["content-type"] = "application/grpc",
    ["te"] = "trailers",
    ["@RESERVATION_HEADER@"] = id,
    ["@REFUSED_HEADER@"] = refused and "1" or nil,
  }, "\0\0\0\0\0", EVENT_OPTIONS)
end

function envoy_on_response(handle)
  for chunk in handle:bodyChunks() do
    local length = chunk:length()
    local head = length > 0 and chunk:getBytes(0, math.min(length, HEAD_BYTES)) or ":"
    if head:sub(1, 1) ~= ":" or head:find("\ndata:", 1, true) then
      local seen = handle:streamInfo():dynamicMetadata()
      seen:set(
        "@OBSERVED_NAMESPACE@",
        "@FIRST_CHUNK_KEY@",
        handle:timestampString(EnvoyTimestampResolution.MICROSECOND)
      )
      if streams(handle) then
        local refused = refuses(head)
        if refused then
          seen:set("@OBSERVED_NAMESPACE@", "@REFUSED_KEY@", true)
        end
        tell(handle, refused)
      end
      break
    end
  end
end
