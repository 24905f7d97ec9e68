-- What passes of a response: when its first output came, how many events
-- a stream has had, its tokens by the engine's count, and what it says of an error. Envoy's response headers
-- are not the first token, because an engine may send them long before it begins to generate.
--
-- A whole answer costs one call: the loop is left at its first chunk. Of a stream the lines are looked
-- through, and no more: the events are counted, not read, but for those with the engine's counts. Lines that begin with ":" are SSE comments, which
-- engines send to keep a waiting connection alive, and are no output.
--
-- In generated text quotes and line ends are escaped, so that no text can look like what is looked for.

-- So much of what an engine says of an error is noted.
local ERROR_BYTES = @ERROR_BYTES@

-- Of a line that is longer than this only its head and its last bytes are kept until it is whole. TGI's last
-- event repeats the whole text, and ends with the counts.
local LINE_BYTES, LINE_HEAD_BYTES, LINE_TAIL_BYTES = 4096, 512, 1024
-- An event longer than this is not held back until it is whole, and from then on nothing is taken out.
local HELD_BYTES = @HELD_BYTES@

-- Whether answers are gathered for the service's cache, where a decision asks for that.
local CACHES = @CACHES@

local function options(timeout_ms)
  return {
    -- Nobody waits for the answer: the chunk passes on at once, whatever becomes of the service.
    ["asynchronous"] = true,
    ["timeout_ms"] = timeout_ms,
    ["send_xff"] = false,
    ["trace_sampled"] = false,
  }
end
local EVENT_OPTIONS, FILL_OPTIONS = options(@EVENT_TIMEOUT_MS@), options(@FILL_TIMEOUT_MS@)

-- What is counted: the object of an event that says it, and in there each name and what it is noted by.
local COUNTS = {
@COUNTS@
}
for _, each in ipairs(COUNTS) do
  each.named, each.object = '"' .. each.of .. '"', '"' .. each.of .. '"%s*:%s*(%b{})'
  for _, count in ipairs(each) do
    count.pattern, count.key = '"' .. count[1] .. '"%s*:%s*(%d+)', count[2]
  end
end

-- The last events of streams whose events have names.
local ENDS = {@ENDS@}

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
    local before = text:sub(math.max(1, at - 24), at - 1)
    local named = before:find('"object"%s*:%s*$') or before:find('"finish_reason"%s*:%s*$')
    if named then
      local from = at - #before + named - 1
      return text:sub(from, from + ERROR_BYTES - 1)
    end
    at = text:find('"error"', at + 7, true)
  end
  -- SGLang's own streams say so of what they gave up, with a status.
  at = text:find('"abort"', 1, true)
  local before = at and text:sub(math.max(1, at - 48), at - 1)
  local named = before and before:find('"finish_reason"%s*:%s*{%s*"type"%s*:%s*$')
  if named then
    local from = at - #before + named - 1
    return text:sub(from, from + ERROR_BYTES - 1)
  end
  at = text:find("\nerror:", 1, true)
  return at and text:sub(at, at + ERROR_BYTES - 1)
end

-- What stands in a whole answer's place: a page, or what FastAPI's own errors look like.
local function no_answer(handle, text)
  local type = (handle:headers():get("content-type") or ""):lower()
  local json = type:find("^application/json")
  if type:find("^text/html") or json and (text:find("^%s*<") or text:find('^%s*{%s*"detail"%s*:')) then
    return "@NO_ANSWER@" .. text:sub(1, ERROR_BYTES)
  end
end

-- An event's data may stand in several lines: here they are one.
local function joined(text)
  return (text:gsub("([^\r\n])\r?\ndata: ?", "%1"))
end

-- How many choices an event holds: engines write one each, and a gateway before them may put several together.
-- Each says how it ended, or that it has not.
local function choices_in(text)
  local count, at = 0, text:find('"finish_reason"', 1, true)
  while at do
    count, at = count + 1, text:find('"finish_reason"', at + 15, true)
  end
  return count
end

-- What an event says that is called an error, where the first one is: OpenAI's own has no object of that name.
local function error_event(text)
  local at = text:match("^event:%s*error%s*\ndata:()")
  return at and text:sub(at, at + ERROR_BYTES - 1)
end

-- An event that holds no token: usage, the end, or what opens a choice before its first token.
local function is_bare(event)
  if event:find("^data:%s*%[DONE%]") or event:find('"choices"%s*:%s*%[%s*%]') then
    return true
  end
  return event:find('"role"%s*:%s*"') ~= nil
    and (event:find('"content"%s*:%s*""') or event:find('"content"%s*:%s*null')) ~= nil
    and not event:find('"finish_reason"%s*:%s*"')
    and not event:find('"reasoning[%a_]*"%s*:%s*"[^"]')
    and not event:find('"arguments"%s*:%s*"[^"]')
end

-- Where the next event begins, at `from` or later.
local function next_event(text, from)
  local at = text:find("\ndata:", from, true)
  return at and at + 1
end

-- Once tokens have come, no choice opens without one.
local function is_bare_later(event)
  return event:find("^data:%s*%[DONE%]") or event:find('"choices":[]', 1, true) or event:find('"choices": []', 1, true)
end

-- The counts of one event, where it has some.
local function counts_in(found, line)
  if not found.event and not line:find('"choices"', 1, true) then
    -- TGI's events are numbered; so are choices, which are no events, and blocks of named ones.
    local index = line:match('"index"%s*:%s*(%d+)')
    if index then
      found.counts["@INDEX_KEY@"] = tonumber(index)
    end
  end
  for _, each in ipairs(COUNTS) do
    local at = line:find(each.named, 1, true)
    local object = at and line:match(each.object, at)
    if object then
      for _, count in ipairs(each) do
        local number = object:match(count.pattern)
        if number then
          found.counts[count.key] = tonumber(number)
        end
      end
    end
  end
  if found.event == "message_start" then
    -- What it says of the output is what it begins with.
    found.counts["@COMPLETION_TOKENS_KEY@"] = nil
  end
end

-- The name of an event, where it says what the event is. One of a single word is SSE's own "message", or an engine's, but for
-- these two: such an event is read as one without a name.
local function own_name(name)
  return name and (name == "error" or name == "ping" or name:find("[_.]")) and name or nil
end

-- One event with a name, as OpenAI's responses and Anthropic's messages have them: what holds a token is
-- called so, and the last one's name is known. Of the rest some may say counts.
local function named_event(found, line)
  local name = found.event
  if name:find("delta$") and name ~= "message_delta" then
    found.count = found.count + 1
    return
  end
  if ENDS[name] then
    found.done = true
  end
  counts_in(found, line)
end

-- Whether named events have come to their first token, or to their end: until then an engine may have said
-- no more than that it has begun.
local function tokens_begin(text)
  for name in text:gmatch("event:%s*([%w_.]+)") do
    if name == "error" or not own_name(name) or ENDS[name] or (name:find("delta$") and name ~= "message_delta") then
      return true
    end
  end
  return false
end

-- An object of this name; what many engines write is `"usage":null`.
local function has(text, named, object)
  local at = text:find(named, 1, true)
  return at and text:find(object, at)
end

-- Whether all that these lines hold is choices with tokens.
local function is_usual(text)
  return text:find('"choices"', 1, true)
    and not text:find("error", 1, true)
    and not text:find('"abort"', 1, true)
    and not text:find("[DONE]", 1, true)
    and not text:find('"choices":[]', 1, true)
    and not text:find('"choices": []', 1, true)
    and not has(text, '"usage"', '"usage"%s*:%s*{')
    and not has(text, '"timings"', '"timings"%s*:%s*{')
end

-- An event is whole: what its data comes to.
local function ended_event(found)
  local data = found.data
  found.data = nil
  if not data then
    return
  end
  local failure = error_in(data)
  if failure or found.event == "error" then
    -- OpenAI's own error event has no object of that name: what it says is the event.
    found.failure = found.failure or failure or data:sub(6, 5 + ERROR_BYTES)
  elseif found.event then
    named_event(found, data)
  else
    if not (found.count == 0 and is_bare or is_bare_later)(data) then
      found.count = found.count + math.max(1, choices_in(data))
    elseif data:find("^data:%s*%[DONE%]") then
      found.done = true
    end
    counts_in(found, data)
  end
end

-- Of what is longer than may be kept, its head and its last bytes.
local function cut(text)
  return #text > LINE_BYTES and text:sub(1, LINE_HEAD_BYTES) .. text:sub(-LINE_TAIL_BYTES) or text
end

-- One line of data: an event's first, or what goes on in it. Some write no empty line between two events: what was whole
-- before this line is an event of its own.
local function data_line(found, line)
  if found.data and not found.data:sub(-4):find("}%s*$") then
    found.data = cut(found.data .. line:sub(6))
    return
  end
  ended_event(found)
  found.data = line
  if line:find("^data:%s*%[DONE%]") then
    ended_event(found)
  end
end

-- Looks through the lines that are whole; answers what has come of one that is not. `found` is the stream's:
-- its events that held a token, its counts, its error, its end, and the data of an event that has not ended.
local function look_through(found, text)
  local at = 1
  local usual = found.count > 0 and not found.event and not found.data and is_usual(text)
  local events, open = 0, false
  while true do
    local line_end = text:find("\n", at, true)
    if not line_end then
      break
    end
    if line_end <= at + 1 then
      -- An event ends with an empty line, and its name with it.
      open = false
      ended_event(found)
      found.event = nil
    elseif line_end > at + 5 then
      if usual then
        if text:find("^data:", at) then
          events = open and events or events + 1
          open = true
        end
      else
        local line = text:sub(at, line_end - 1)
        if line:sub(1, 5) == "data:" then
          data_line(found, line)
        elseif line:sub(1, 6) == "event:" then
          found.event = own_name(line:match("^event:%s*([%w_.]+)"))
        else
          found.failure = found.failure or error_in(line)
        end
      end
    end
    at = line_end + 1
  end
  if events > 0 then
    found.count = found.count + math.max(events, choices_in(at > #text and text or text:sub(1, at - 1)))
  end
  return cut(at > 1 and text:sub(at) or text)
end

-- What the decision has noted for us; nil where there was none.
local function noted(handle)
  return handle:streamInfo():dynamicMetadata():get("@DECISION_NAMESPACE@")
end

-- Calls the service that decided: a gRPC unary call.
local function call(handle, path, message, how, refused, served)
  local decision = noted(handle)
  local id = decision and decision["@RESERVATION_KEY@"]
  local cluster = decision and decision["@EVENT_CLUSTER_KEY@"]
  if not id or not cluster then
    return
  end
  handle:httpCall(cluster, {
    [":method"] = "POST",
    [":path"] = path,
    [":authority"] = cluster,
    ["content-type"] = "application/grpc",
    ["te"] = "trailers",
    ["@RESERVATION_HEADER@"] = id,
    ["@REFUSED_HEADER@"] = refused and "1" or nil,
    ["@SERVED_HEADER@"] = served,
  }, message, how)
end

-- Tells it of the first token: the message is empty.
local function tell(handle, refused, served)
  call(handle, "@EVENT_PATH@", "\0\0\0\0\0", EVENT_OPTIONS, refused, served)
end

-- How many bytes of the answer are gathered for the service's cache; nil where none are.
local function gathers(handle)
  local decision = noted(handle)
  return decision and tonumber(decision["@CACHE_KEY@"])
end

-- Gives it a whole answer, which is the message.
local function fill(handle, parts)
  local whole = table.concat(parts)
  local length = #whole
  local head = string.char(0, 0, math.floor(length / 65536) % 256, math.floor(length / 256) % 256, length % 256)
  call(handle, "@FILL_PATH@", head .. whole, FILL_OPTIONS)
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
  local decision = streams and noted(handle)
  local asked = decision and decision["@USAGE_KEY@"]
  if asked then
    handle:headers():remove("content-length")
  end
  return asked
end

-- What an engine calls an answer that it keeps: the first id in it, where that is a response's. What clients
-- send and engines repeat stands after it.
local function kept_as(text)
  local head = text:sub(1, 1024)
  if not head:find('"resp_', 1, true) then
    return nil
  end
  local id = head:match('"id"%s*:%s*"([%w_-]+)"')
  return id and #id <= 256 and id:sub(1, 5) == "resp_" and id or nil
end

-- What a client reads where the engine did not take our key, in the words of both dialects.
local KEY_REFUSED, SITE_REFUSED = @KEY_REFUSED_BODY@, @SITE_REFUSED_BODY@

-- The client's own key never went there, so that 401 or 403 is the operator's fault and not the client's.
local function refuses_key(handle, served)
  local status = served and handle:headers():get(":status")
  return (status == "401" or status == "403") and noted(handle) ~= nil
end

local function say_key_refused(handle)
  local decision = noted(handle)
  -- What was tried at home as well has an empty word here, and home's answer.
  local by_site = decision["@SITE_KEY@"] and decision["@SPILLED_HEADER@"] ~= ""
  handle:streamInfo():dynamicMetadata():set("@OBSERVED_NAMESPACE@", "@KEY_REFUSED_KEY@", true)
  local headers = handle:headers()
  headers:replace(":status", "502")
  headers:remove("www-authenticate")
  headers:remove("content-encoding")
  headers:replace("content-type", "application/json")
  headers:replace("content-length", tostring(handle:body(true):setBytes(by_site and SITE_REFUSED or KEY_REFUSED)))
end

-- What other pools that requests spill to answer where they refuse or fail.
local GIVES_WAY = {@GIVES_WAY@}

-- The next try of a request that was sent elsewhere is served at home: nothing is to be waited for, whatever the
-- provider says of itself. OpenAI's clients heed both.
local function ask_again(handle)
  local headers = handle:headers()
  local decision = GIVES_WAY[headers:get(":status")] and noted(handle)
  local spilled = decision and decision["@SPILLED_HEADER@"]
  -- Empty once it was tried at home as well; or home has failed before.
  if spilled and spilled ~= "" and spilled ~= "@SPILL_FAILED@" then
    headers:replace("retry-after", "1")
    headers:replace("x-should-retry", "true")
  end
end

function envoy_on_response(handle)
  -- By the route, for us alone.
  local served = handle:headers():get("@SERVED_HEADER@")
  handle:headers():remove("@SERVED_HEADER@")
  local provider = handle:headers():get("@PROVIDER_HEADER@")
  if provider then
    handle:headers():remove("@PROVIDER_HEADER@")
    if provider ~= "@PROVIDER_SILENT@" then
      handle:streamInfo():dynamicMetadata():set("@OBSERVED_NAMESPACE@", "@PROVIDER_KEY@", provider:sub(1, 256))
    end
  end
  ask_again(handle)
  if refuses_key(handle, served) then
    say_key_refused(handle)
    return
  end
  local well, stream = answers_well(handle)
  local asked = usage_asked(handle, well and stream)
  -- What has come of an event whose end has not, where something may have to be taken out of it.
  local held = ""
  local function note(key, value)
    -- Asked for each time: Envoy takes the object away whenever the loop waits.
    handle:streamInfo():dynamicMetadata():set("@OBSERVED_NAMESPACE@", key, value)
  end
  -- The pieces of an answer that is gathered, as the client gets them.
  local left = CACHES and well and gathers(handle)
  local parts = left and {}
  local begun, rest, first = false, "", true
  -- Its events have names, and none with a token has come.
  local waits = false
  local found = { count = 0, counts = {}, failure = nil, done = false }
  -- Looks through what came, and notes what is new of it.
  local function see(text)
    local count, failed, done = found.count, found.failure, found.done
    rest = look_through(found, text)
    if found.count > count then
      note("@EVENTS_KEY@", found.count)
    end
    for key, value in pairs(found.counts) do
      note(key, value)
      found.counts[key] = nil
    end
    if found.failure and not failed then
      note("@ERROR_KEY@", found.failure)
    end
    if found.done and not done then
      note("@DONE_KEY@", true)
    end
  end
  for chunk in handle:bodyChunks() do
    local length = chunk:length()
    local text = length > 0 and chunk:getBytes(0, length) or ""
    local shown
    if asked and length > 0 then
      text = held .. text
      local last = text:sub(-2) == "\n\n" and #text or (text:match(".*\n\n()") or 1) - 1
      held = text:sub(last + 1)
      text = text:sub(1, last)
      if #held > HELD_BYTES then
        text, held, asked = text .. held, "", nil
      end
      shown = asked and without_usage(text, asked) or text
      chunk:setBytes(shown)
    elseif held ~= "" then
      -- The end came without the event's: it goes on as it is.
      text, held = held, ""
      chunk:setBytes(text)
    end
    if text ~= "" then
      if parts then
        shown = shown or text
        left = left - #shown
        if left >= 0 then
          parts[#parts + 1] = shown
        else
          parts = nil
        end
      end
      if first then
        first = false
        local id = well and kept_as(text)
        if id then
          note("@RESPONSE_ID_KEY@", id)
        end
      end
      -- Events with names: an event that begins here is enough of it to tell.
      local named = not begun and well and stream and text:find("^event:")
      waits = waits or named
      if not begun and (waits and tokens_begin(text) or not waits and (text:sub(1, 1) ~= ":" or text:find("\ndata:", 1, true))) then
        begun = true
        note("@FIRST_CHUNK_KEY@", handle:timestampString(EnvoyTimestampResolution.MICROSECOND))
        local failure
        if well and stream then
          failure = error_in(joined(text)) or error_event(text)
        elseif well then
          failure = error_in(text) or no_answer(handle, text)
        end
        if not (well and stream) then
          if failure then
            note("@ERROR_KEY@", failure)
            parts = nil
          end
        else
          local refused = failure and failure:find("overloaded", 1, true) ~= nil
          if refused then
            note("@REFUSED_KEY@", true)
          end
          -- Another error is no first token, and its record follows at once.
          if refused or not failure then
            tell(handle, refused, served)
          end
        end
      end
      if well and stream then
        -- Each time: a client that leaves takes the loop with it.
        see(rest == "" and text or rest .. text)
        -- Some clients leave at the end that their dialect has, before the connection's own.
        if found.done and parts and not found.failure and parts[#parts]:sub(-2) == "\n\n" then
          fill(handle, parts)
          parts = nil
        end
      elseif begun and not parts then
        break
      end
    end
  end
  -- An engine's last line may have no end, and its last event no empty line.
  if well and stream and (rest ~= "" or found.data) then
    see(rest .. "\n\n")
  end
  -- Only here at the answer's own end: who leaves, or is cut off, takes the loop with it.
  if parts and not found.failure then
    fill(handle, parts)
  end
end
