-- When the first body chunk of a response came: Envoy's response headers are not the first token,
-- because an engine may send them long before it begins to generate.
--
-- One call per response. The loop is left at the first chunk, so that every later one passes by
-- without entering Lua; nothing is buffered. Chunks that begin with ":" are SSE comments, which
-- engines send to keep a waiting connection alive, and are not output.
function envoy_on_response(handle)
  for chunk in handle:bodyChunks() do
    if chunk:length() > 0 and chunk:getBytes(0, 1) ~= ":" then
      handle:streamInfo():dynamicMetadata():set(
        "@NAMESPACE@",
        "@KEY@",
        handle:timestampString(EnvoyTimestampResolution.MICROSECOND)
      )
      break
    end
  end
end
