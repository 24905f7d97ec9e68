// The fleet map: endpoints as tiles, by pool. A tile's colour says nothing that its words do not.

import { $, attr, bar, fill, h, keyed, say } from "./dom.js";
import { brief, count, percent, plural } from "./format.js";
import { endpointDialog } from "./endpoint.js";

const WORDS = {
  ready: "ready", degraded: "degraded", suspect: "suspect", stale: "no news", pending: "not yet Envoy's",
  draining: "draining", down: "down",
};
const ORDER = { down: 0, degraded: 1, suspect: 2, stale: 3, draining: 4, pending: 5, ready: 6 };
const COMPACT_ABOVE = 36;
const WIDE_ABOVE = 2;

const endpoints = new Map();
const pools = new Map();
let about = [];
let leftOut = 0;

export function reset(list) {
  endpoints.clear();
  for (const each of list) endpoints.set(each.address, each);
}

export function change({ endpoints: changed, endpoints_gone: gone, pools: known, endpoints_left_out: left }) {
  for (const each of changed || []) endpoints.set(each.address, each);
  for (const address of gone || []) endpoints.delete(address);
  about = known;
  leftOut = left;
}

export function draw() {
  const all = [...endpoints.values()];
  const bad = all.filter((each) => each.state !== "ready").length;
  const total = about.reduce((sum, pool) => sum + pool.endpoints, 0);
  const ready = about.reduce((sum, pool) => sum + pool.ready, 0);
  say($("fleet-note"), total ? `${ready} of ${plural(total, "endpoint")} ready${bad ? `, ${bad} to look at` : ""}${leftOut ? `; ${count(leftOut)} more are not shown` : ""}` : "");
  const body = $("pools");
  if (!total) {
    if (!body.querySelector(".empty") || pools.size) {
      pools.clear();
      body.replaceChildren(h("p", { class: "empty", text: "No endpoint yet: none is listed, and no agent has registered one." }));
    }
    return;
  }
  const first = body.querySelector(":scope > .empty");
  if (first) first.remove();
  const by = new Map(about.map((pool) => [pool.name, []]));
  for (const each of all) (by.get(each.pool) || by.set(each.pool, []).get(each.pool)).push(each);
  keyed(body, about, (pool) => pool.name, makePool, (entry, pool) => changePool(entry, pool, by.get(pool.name)), pools);
}

function makePool() {
  const title = h("h3");
  const note = h("span", { class: "quiet" });
  const tiles = h("ul", { class: "tiles" });
  const element = h("div", { class: "pool" }, h("div", { class: "pool-head" }, title, note), tiles);
  return { element, title, note, tiles, kept: new Map() };
}

function changePool(entry, pool, members) {
  say(entry.title, pool.name);
  say(entry.note, `${pool.ready} of ${pool.endpoints} ready · ${pool.models.join(", ")} · ${pool.strategy}`);
  entry.tiles.classList.toggle("compact", members.length > COMPACT_ABOVE);
  entry.element.classList.toggle("wide", members.length > WIDE_ABOVE);
  attr(entry.tiles, "aria-label", `Endpoints of ${pool.name}`);
  // A big pool shows first who needs a person; a small one stays in its order, so that nothing jumps.
  const shown = members.length > COMPACT_ABOVE ? [...members].sort((a, b) => ORDER[a.state] - ORDER[b.state]) : members;
  const busiest = Math.max(4, ...members.map((each) => each.in_flight));
  keyed(entry.tiles, shown, (each) => each.address, makeTile, (tile, each) => changeTile(tile, each, busiest), entry.kept);
}

function makeTile(each) {
  const parts = {
    name: h("span", { class: "name mono" }), state: h("span", { class: "state" }),
    place: h("span", { class: "place" }), rate: h("span", { class: "rate" }), gpu: h("span", { class: "gpu" }), causes: h("span", { class: "causes" }),
    load: bar(), loadText: h("span", { class: "value" }), kv: bar("second kv"), kvText: h("span", { class: "value kv" }),
    kvWhat: h("span", { class: "what kv", text: "KV" }),
  };
  const button = h("button", { type: "button", class: "tile", on: { click: () => endpointDialog(each.address) } },
    h("span", { class: "first" }, parts.name, parts.state),
    h("span", { class: "first" }, parts.place, parts.rate),
    h("span", { class: "meters" },
      h("span", { class: "what", text: "load" }), parts.load, parts.loadText, parts.kvWhat, parts.kv, parts.kvText),
    parts.gpu, parts.causes);
  return { element: h("li", {}, button), button, ...parts, before: null };
}

function changeTile(tile, each, busiest) {
  if (tile.before === each && tile.busiest === busiest) return;
  tile.before = each;
  tile.busiest = busiest;
  attr(tile.button, "data-state", each.state);
  attr(tile.button, "data-address", each.address);
  attr(tile.state, "data-state", each.state);
  say(tile.name, each.address);
  const word = WORDS[each.state] || each.state;
  say(tile.state, each.state === "degraded" || each.health < 0.995 && each.state !== "down" ? `${word} ${each.health.toFixed(2)}` : word);
  say(tile.place, [each.node, each.zone].filter(Boolean).join(" · ") || "no agent");
  fill(tile.load, each.in_flight / Math.min(each.max_concurrent, busiest * 1.25));
  say(tile.loadText, `${each.in_flight}${each.peers_in_flight ? ` +${each.peers_in_flight}` : ""}`);
  say(tile.rate, `${brief(each.tokens_per_s)} tok/s`);
  fill(tile.kv, each.kv, each.kv > 0.95 ? "bad kv" : each.kv > 0.85 ? "odd kv" : "second kv");
  say(tile.kvText, percent(each.kv));
  say(tile.gpu, gpuText(each.gpu));
  const causes = each.causes.map((cause) => cause.name.startsWith("gpu ") ? cause.name.slice(4) : cause.detail || cause.name);
  if (each.state === "down" && !causes.length && each.detail) causes.push(each.detail);
  say(tile.causes, causes.join("; "));
  tile.causes.hidden = !causes.length;
  attr(tile.button, "title", causes.join("; ") || null);
  attr(tile.button, "aria-label",
    `${each.address}, ${word}, health ${each.health.toFixed(2)}, ${each.in_flight} in flight, KV ${percent(each.kv)}` +
    (causes.length ? `, because: ${causes.join("; ")}` : ""));
}

function gpuText(gpu) {
  if (!gpu) return "no GPU figures";
  const name = (gpu.count > 1 ? `${gpu.count}× ` : "") + gpu.name.replace(/^NVIDIA /, "").split(/[ -]/)[0];
  if (gpu.lost) return `${name} · lost`;
  const parts = [name];
  if (gpu.utilization !== null) parts.push(`${gpu.utilization}%`);
  if (gpu.memory !== null) parts.push(`mem\u00a0${percent(gpu.memory)}`);
  if (gpu.temperature_c !== null) parts.push(`${gpu.temperature_c}\u00a0°C`);
  if (gpu.xids.length) parts.push(`XID ${gpu.xids.join(", ")}`);
  return parts.join(" · ");
}
