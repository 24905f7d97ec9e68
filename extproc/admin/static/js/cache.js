// The response cache: what it holds, what came of looks by tenant, what hits saved, and purges.

import { confirm } from "./dialog.js";
import { $, h, say } from "./dom.js";
import { count, plural, span } from "./format.js";
import { ask, canWrite, onChange } from "./session.js";

const ROWS = 50;
const mib = (value) => `${(value / 2 ** 20).toFixed(1)} MiB`;
// Those that an operator looks for first; the others follow by number.
const FIRST = ["hit", "joined", "miss"];

const HEADS = ["tenant", "hits", "of looks", "what came of looks", "tokens saved", "replica time saved", ""];
let seen = null;

export function begin() {
  $("cache-purge").addEventListener("click", () => purged({ all: true }, "all answers"));
  onChange(() => seen && take(seen));
}

export function take(data) {
  seen = data;
  const on = Boolean(data && data.answers !== undefined);
  $("cache").hidden = !on;
  $("cache-link").hidden = !on;
  if (!on) return;
  const evicted = data.evicted ? `; ${count(data.evicted)} went for room` : "";
  say($("cache-note"), `${plural(data.answers, "answer")}, ${mib(data.bytes)} of ${mib(data.bytes_max)} in ${data.store}${evicted}`);
  $("cache-purge").hidden = !canWrite();
  const wrong = [
    data.away ? "The store is away: nothing is answered from it." : "",
    ...Object.entries(data.split).map(([pool, several]) => `Pool ${pool} is not cached: its replicas run different things (${several.join(", ")}).`),
    ...Object.entries(data.refused).map(([reason, n]) => `${plural(n, "entry").replace("entrys", "entries")} of the store refused: ${reason}.`),
  ].filter(Boolean);
  $("cache-wrong").replaceChildren(...wrong.map((text) => h("p", { class: "bad", text })));
  const tenants = Object.entries(data.requests).map(([name, found]) => row(name, found, data.saved[name])).sort((a, b) => b.hits - a.hits);
  $("cache-table").tBodies[0].replaceChildren(...tenants.slice(0, ROWS).map((each) => each.element));
  $("cache-table").tHead.replaceChildren(h("tr", {}, HEADS.map((text, i) => h("th", { scope: "col", class: [1, 2, 4, 5].includes(i) ? "number" : null, text }))));
  $("cache-empty").hidden = tenants.length > 0;
}

function row(name, found, saved) {
  const looks = Object.values(found).reduce((sum, n) => sum + n, 0);
  const hits = (found.hit || 0) + (found.joined || 0);
  const rest = Object.keys(found).filter((key) => !FIRST.includes(key)).sort((a, b) => found[b] - found[a]);
  const outcomes = [...FIRST.filter((key) => found[key]), ...rest].map((key) => `${count(found[key])} ${key}`).join(", ");
  const tokens = saved ? saved.input_tokens + saved.output_tokens : 0;
  const cells = [[name], [count(hits), "number"], [looks ? `${Math.round((hits / looks) * 100)}%` : "", "number"], [outcomes], [count(tokens), "number"], [span((saved ? saved.gpu_ms : 0) / 1000), "number"]];
  const purge = canWrite() ? h("button", { type: "button", class: "plain danger", text: "Purge…", on: { click: () => purged({ tenant: name }, `the answers of ${name}`) } }) : null;
  return { hits, element: h("tr", { "data-tenant": name }, cells.map(([text, kind]) => h("td", { class: kind, text })), h("td", {}, purge)) };
}

function purged(order, words) {
  return confirm(`Purge ${words}?`, "They are forgotten, by every service that keeps answers in the same Redis. Answers that are on their way are not kept either.", "Purge",
    () => ask("api/v1/orders/PurgeCache", { method: "POST", body: order }), { danger: true });
}
