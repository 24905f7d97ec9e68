-- What passes of a response: when its first output came, how many events
-- a stream has had, and what it says of an error. Envoy's response headers are not the first token,
-- because an engine may send them long before it begins to generate.
--
-- A whole answer costs one call: the loop is left at its first chunk. Of a stream every chunk is looked
-- through for the beginnings of lines, and no more: the events are counted, not read. Lines that begin
-- with ":" are SSE comments, which engines send to keep a waiting connection alive, and are no output.
--
-- In generated text quotes and line ends are escaped, so that no text can look like what is looked for.

-- So much of what an engine says of an error is noted.
local ERROR_BYTES = @ERROR_BYTES@

-- An event longer than this is not held back until it is whole, and from then on nothing is taken out.
local HELD_BYTES = @HELD_BYTES@

local EVENT_OPTIONS = {
  -- Nobody waits for the answer: the chunk passes on at once, whatever becomes of the service.
  ["asynchronous"] = true,
  ["timeout_ms"] = @EVENT_TIMEOUT_MS@,
  ["send_xff"] = false,
  ["trace_sampled"] = false,
}

local function answers_well(handle)
  local headers = handle:headers()
  local type = headers:get("content-type") or ""
  return headers:get(":status") == "200", type:sub(1, 17):lower() == "text/event-stream"
end

-- Where an engine says that it failed, and how: an object or text named "error", or an object that is one.
-- llama.cpp wrote lines of their own for it.
local function error_in(text)
  if text:sub(1, 7) == "error: " then
    return text:sub(1, ERROR_BYTES)
  end
  local at = text:find('"error"', 1, true)
  while at do
    if text:find('^%s*:%s*[{"]', at + 7) then
      return text:sub(at, at + ERROR_BYTES - 1)
    end
    local before = text:sub(math.max(1, at - 16), at - 1)
    if before:find('"object"%s*:%s*$') then
      return text:sub(at - #before, at - #before + ERROR_BYTES - 1)
    end
    at = text:find('"error"', at + 7, true)
  end
  at = text:find("\nerror:", 1, true)
  return at and text:sub(at, at + ERROR_BYTES - 1)
end

-- An event that holds no token: usage, an error, the end, or what opens a choice before its first token.
local function is_bare(event)
  if event:find("^data:%s*%[DONE%]") or event:find('"choices"%s*:%s*%[%s*%]') or error_in(event) then
    return true
  end
  return event:find('"role"%s*:%s*"') ~= nil
    and (event:find('"content"%s*:%s*""') or event:find('"content"%s*:%s*null')) ~= nil
    and not event:find('"finish_reason"%s*:%s*"')
    and not event:find('"reasoning[%a_]*"%s*:%s*"[^"]')
    and not event:find('"arguments"%s*:%s*"[^"]')
end

-- Usage comes in an event of its own, after the last token.
local function holds_usage(text)
  return text:find('"choices":[]', 1, true) or text:find('"choices": []', 1, true)
end

-- Where the next event begins, at `from` or later.
local function next_event(text, from)
  local at = text:find("\ndata:", from, true)
  return at and at + 1
end

-- Events that hold a token, until one does: from then on each that begins is taken to.
local function first_outputs(text, at)
  local count = 0
  while at do
    local next_at = next_event(text, at)
    if count > 0 or not is_bare(text:sub(at, next_at and next_at - 1)) then
      count = count + 1
    end
    at = next_at
  end
  return count
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

-- Without the usage that was asked for in the client's name: the event that holds it alone, or the field of
-- an event with a choice. `text` is whole events.
local function without_usage(text, asked)
  if not text:find('"usage"', 1, true) then
    return text
  end
  local kept = {}
  local at = 1
  while at <= #text do
    local next_at = next_event(text, at) or #text + 1
    local event = text:sub(at, next_at - 1)
    if event:find('"usage"%s*:%s*{') then
      if event:find('"choices"%s*:%s*%[%s*%]') then
        event = asked:find("last", 1, true) and "" or event
      elseif asked:find("every", 1, true) then
        event = event:gsub(',%s*"usage"%s*:%s*%b{}', "", 1)
      end
    end
    kept[#kept + 1] = event
    at = next_at
  end
  return table.concat(kept)
end

-- What the service asked for in the client's name, where this is a stream that may hold it.
local function usage_asked(handle, streams)
  local decision = streams and handle:streamInfo():dynamicMetadata():get("@DECISION_NAMESPACE@")
  local asked = decision and decision["@USAGE_KEY@"]
  if asked then
    handle:headers():remove("content-length")
  end
  return asked
end

function envoy_on_response(handle)
  local well, stream = answers_well(handle)
  local asked = usage_asked(handle, well and stream)
  -- What has come of an event whose end has not, where something may have to be taken out of it.
  local held = ""
  local function note(key, value)
    -- Asked for each time: Envoy takes the object away whenever the loop waits.
    handle:streamInfo():dynamicMetadata():set("@OBSERVED_NAMESPACE@", key, value)
  end
  local begun, failed, ended = false, false, false
  local count = 0
  -- The last bytes of a line that goes on in the next chunk.
  local rest = "\n"
  for chunk in handle:bodyChunks() do
    local length = chunk:length()
    local text = length > 0 and chunk:getBytes(0, length) or ""
    if asked and length > 0 then
      text = held .. text
      local last = text:sub(-2) == "\n\n" and #text or (text:match(".*\n\n()") or 1) - 1
      held = text:sub(last + 1)
      text = text:sub(1, last)
      if #held > HELD_BYTES then
        text, held, asked = text .. held, "", nil
      end
      chunk:setBytes(asked and without_usage(text, asked) or text)
    elseif held ~= "" then
      -- The end came without the event's: it goes on as it is.
      text, held = held, ""
      chunk:setBytes(text)
    end
    length = #text
    if length > 0 then
      local whole = rest == "\n" and text or rest .. text
      local at = rest == "\n" and whole:sub(1, 5) == "data:" and 1 or next_event(whole, 1)
      if not begun and (at or whole:sub(1, 1) ~= ":") then
        begun = true
        note("@FIRST_CHUNK_KEY@", handle:timestampString(EnvoyTimestampResolution.MICROSECOND))
        if not (well and stream) then
          local err = well and error_in(text)
          if err then
            note("@ERROR_KEY@", err)
          end
          break
        end
        local err = error_in(whole)
        local refused = err and err:find("overloaded", 1, true) ~= nil
        if refused then
          note("@REFUSED_KEY@", true)
        end
        -- Another error is no first token, and its record follows at once.
        if refused or not err then
          tell(handle, refused)
        end
      end
      if begun then
        if not failed then
          local err = error_in(whole)
          failed = err ~= nil and err ~= false
          if failed then
            note("@ERROR_KEY@", err)
          end
        end
        if count == 0 then
          count = first_outputs(whole, at)
        else
          while at do
            count = count + 1
            at = next_event(whole, at)
          end
          if holds_usage(whole) then
            count = count - 1
          end
        end
        if not ended and whole:find("data: [DONE]", math.max(1, #whole - 15), true) then
          ended = true
          count = math.max(0, count - (count > 0 and 1 or 0))
          note("@DONE_KEY@", true)
        end
        -- Each time: a client that leaves takes the loop with it.
        if count > 0 then
          note("@EVENTS_KEY@", count)
        end
      end
      rest = whole:sub(-1) == "\n" and "\n" or whole:sub(-5)
    end
  end
end
