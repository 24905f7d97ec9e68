// One endpoint's facts, and the orders that may be given to it.

import { h } from "./dom.js";
import { DASH, bytes, count, ms, percent } from "./format.js";
import { confirm, facts, show, table } from "./dialog.js";
import { ask, canWrite } from "./session.js";

const path = (address, what = "") => `api/v1/fleet/${encodeURIComponent(address)}${what}`;

export async function endpointDialog(address) {
  let found;
  try {
    found = await ask(path(address));
  } catch (error) {
    show(address, h("p", { class: "bad", text: error.message }));
    return;
  }
  const causes = Object.entries(found.causes).map(([name, cause]) => [name, cause.kind, cause.factor.toFixed(2), cause.detail || DASH]);
  const gpus = found.gpus.map((gpu) => [
    gpu.name || gpu.uuid, gpu.lost ? "lost" : `${gpu.utilization_percent ?? DASH}%`,
    `${bytes(gpu.memory_used_bytes)} of ${bytes(gpu.memory_total_bytes)}`, gpu.temperature_c === null ? DASH : `${gpu.temperature_c} °C`,
    gpu.power_w === null ? DASH : `${Math.round(gpu.power_w)} W`, gpu.xids.map(([code]) => code).join(", ") || DASH,
  ]);
  show(address,
    facts([
      ["condition", `${found.condition}, health ${found.health.toFixed(2)}${found.stale ? ", its agent is silent" : ""}`],
      ["pool", found.pool], ["node, zone", [found.node, found.zone, found.region].filter(Boolean).join(", ")],
      ["engine says", [found.state, found.detail].filter(Boolean).join(": ")],
      ["report", found.age_ms === null ? "none" : `${ms(found.age_ms)} old`],
      ["in flight", `${found.in_flight} of ${found.max_concurrent} (${count(found.in_flight_tokens)} tokens), ${found.peers_in_flight} of other services, ${found.foreign} of nobody here`],
      ["engine's queue", `${found.waiting ?? DASH} waiting, ${found.running ?? DASH} running`],
      ["KV tokens", found.kv_capacity_tokens ? `${count(found.kv_used_tokens ?? found.kv_promised_tokens)} of ${count(found.kv_capacity_tokens)} (${percent((found.kv_used_tokens ?? found.kv_promised_tokens) / found.kv_capacity_tokens)})` : DASH],
      ["prefix cache", cacheOf(found)],
      ["speed", `${found.speed_factor.toFixed(2)} of its model's (confidence ${found.speed_confidence.toFixed(2)})`],
      ["TTFT", `p50 ${ms(found.ttft_p50_ms)}, p99 ${ms(found.ttft_p99_ms)}`],
      ["since the start", `${count(found.ok)} ok, ${count(found.failed)} failed, ${count(found.refused)} refused by it, ${count(found.client_gone)} left by clients`],
      ["models", found.models.join(", ")],
      ...(found.adapters ? [["LoRA adapters", `${found.adapters.join(", ") || "none loaded"} (${count(found.adapter_loads)} loads)`]] : []),
    ]),
    causes.length ? h("h3", { text: "What lowers its health" }) : null,
    causes.length ? table(["cause", "kind", "factor", "detail"], causes, "Causes") : null,
    gpus.length ? h("h3", { text: "GPUs" }) : null,
    gpus.length ? table(["card", "busy", "memory", "temperature", "power", "XIDs"], gpus, "GPUs") : null,
    canWrite() ? actions(found) : h("p", { class: "quiet", text: "Draining and clearing faults need a token that may write (Access, above)." }));
}

// What the prefix index knows of its cache, and where from.
function cacheOf(found) {
  const kv = found.kv_events;
  const said = { guessed: "guessed from what was sent there", usage: "told by answers' usage", events: "told by KV events" };
  return [
    said[found.cache_source] ?? found.cache_source,
    found.cache_tokens ? `taken to hold ${count(found.cache_tokens)} tokens` : "",
    found.prefix_hit_ratio === null ? "" : `its engine found ${percent(found.prefix_hit_ratio)} of prompt tokens cached`,
    kv ? `${count(kv.events)} events, ${count(kv.gaps)} losses, ${count(kv.replays)} replays${kv.complete ? "" : " (incomplete)"}` : "",
  ].filter(Boolean).join("; ");
}

function actions(found) {
  const order = (word, what, text, danger) => h("button", {
    type: "button", class: danger ? "plain danger" : "plain", text: `${word}…`,
    on: { click: () => confirm(`${word} ${found.address}?`, text, word, () => ask(path(found.address, what), { method: "POST", body: {} }), { danger }) },
  });
  return h("div", { class: "actions" },
    found.draining
      ? order("Undrain", "/undrain", "It takes requests again.", false)
      : order("Drain", "/drain", "No new request goes there; those that run there end. It stays so until it is undrained.", true),
    order("Clear faults", "/clear-faults", "Say that its GPU was seen to. Faults that stay until somebody says so end; what is still wrong shows again.", false));
}
