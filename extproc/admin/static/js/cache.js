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
  words(data.semantic);
}

// The semantic cache: by scope what is kept and how often it would have been wrong; what came of questions.
function words(data) {
  const on = Boolean(data && data.questions !== undefined);
  $("cache-words").hidden = !on;
  if (!on) return;
  const wrong = [data.up ? "" : "its process is not there", data.away ? "the store is away: nothing is given" : ""].filter(Boolean);
  const kept = { redis: "in Redis", file: "in memory and on the disk", memory: "in memory" }[data.kept] ?? data.kept;
  say($("cache-words-note"), [`${plural(data.questions, "question")}, ${mib(data.bytes)} of ${mib(data.bytes_max)}, ${kept}`, ...wrong].join("; "));
  const heads = ["of", "questions", "checked answers", "wrong", "wrong at most (95 %)", ""];
  const number = (i) => (i > 0 && i < 5 ? "number" : null);
  const rows = Object.entries(data.scopes).slice(0, ROWS).map(([scope, each]) => {
    const checked = each.checked_hits ? [count(each.checked_hits), count(each.wrong), `${(100 * each.wrong_at_most).toFixed(1)}%`] : ["", "", ""];
    return h("tr", { "data-scope": scope }, [scope, count(each.questions), ...checked, each.off ? "off: too many were wrong" : ""].map((text, i) => h("td", { class: i === 5 ? "bad" : number(i), text })));
  });
  $("cache-words-table").tHead.replaceChildren(h("tr", {}, heads.map((text, i) => h("th", { scope: "col", class: number(i), text }))));
  $("cache-words-table").tBodies[0].replaceChildren(...rows);
  const sums = {};
  for (const found of Object.values(data.requests)) for (const [outcome, n] of Object.entries(found)) sums[outcome] = (sums[outcome] || 0) + n;
  const listed = (found) => Object.entries(found).sort((a, b) => b[1] - a[1]).map(([what, n]) => `${count(n)} ${what}`).join(", ");
  const parts = [["asked", sums], ["refused by guards", data.refused], ["compared answers", data.checks], ["of the store refused", data.store_refused]];
  say($("cache-words-came"), parts.filter(([, found]) => Object.keys(found).length).map(([title, found]) => `${title}: ${listed(found)}`).join(" · "));
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
