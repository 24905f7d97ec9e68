// The stream of decisions with their reasons; paused, it stands still and counts what waits.

import { $, h, say } from "./dom.js";
import { clock, count, ms } from "./format.js";
import { facts, show, table } from "./dialog.js";
import { ask } from "./session.js";

const KEPT = 400;
const SHOWN = 60;

let kept = [];
let last = 0;
let skipped = 0;
let paused = false;
let waiting = 0;

export function reset(list) {
  kept = [];
  last = 0;
  add({ decisions: list, left_out: 0 });
  redraw();
}

export function add({ decisions, left_out: left }) {
  skipped += left;
  const fresh = decisions.filter((each) => each.number > last);
  if (!fresh.length) return;
  last = fresh[fresh.length - 1].number;
  kept = [...fresh.reverse(), ...kept].slice(0, KEPT);
  if (paused) {
    waiting += fresh.length;
    note();
    return;
  }
  const list = $("decisions-list");
  const wanted = fresh.filter(wantedNow);
  if (wanted.length) {
    list.prepend(...wanted.map((each) => row(each, true)));
    while (list.children.length > SHOWN) list.lastElementChild.remove();
  }
  $("decisions-empty").hidden = list.children.length > 0;
  note();
}

export function begin() {
  $("decisions-filter").addEventListener("input", redraw);
  $("decisions-kind").addEventListener("change", redraw);
  $("decisions-pause").addEventListener("click", () => {
    paused = !paused;
    waiting = 0;
    $("decisions-pause").setAttribute("aria-pressed", String(paused));
    say($("decisions-pause"), paused ? "Go on" : "Pause");
    if (!paused) redraw();
    note();
  });
}

function wantedNow(each) {
  const kind = $("decisions-kind").value;
  if (kind === "degraded" ? !each.degraded : kind === "held" ? !(each.held_ms > 0) : kind && each.kind !== kind) return false;
  const text = $("decisions-filter").value.trim().toLowerCase();
  return !text || [each.tenant, each.endpoint, each.model, each.pool, each.reason, each.id, each.code].some((part) => part && part.toLowerCase().includes(text));
}

function redraw() {
  const list = $("decisions-list");
  list.replaceChildren(...kept.filter(wantedNow).slice(0, SHOWN).map((each) => row(each, false)));
  const empty = $("decisions-empty");
  empty.hidden = list.children.length > 0;
  say(empty, kept.length ? "None of the last decisions is such a one." : "No request yet.");
}

function note() {
  const words = paused ? `paused, ${count(waiting)} since` : skipped ? `${count(skipped)} went by unshown` : "";
  say($("decisions-note"), words);
}

function row(each, fresh) {
  const tags = [];
  if (each.kind === "refused") tags.push(h("span", { class: "tag bad", text: `${each.status} ${each.code}` }));
  if (each.kind === "left") tags.push(h("span", { class: "tag quiet", text: "left" }));
  if (each.kind === "cached") tags.push(h("span", { class: "tag quiet", text: "cached" }));
  if (each.degraded) tags.push(h("span", { class: "tag odd", text: "degraded" }));
  if (each.held_ms > 0) tags.push(h("span", { class: "tag odd", text: `held ${ms(each.held_ms)}` }));
  if (each.arm) tags.push(h("span", { class: "tag quiet", text: each.arm }));
  const why = each.kind === "placed" && each.id
    ? h("button", { type: "button", text: "why", "aria-label": `why ${each.tenant} went to ${each.endpoint}`, on: { click: () => explain(each) } }) : null;
  return h("li", { class: fresh ? "new" : null },
    h("span", { class: "line" },
      h("span", { class: "quiet mono", text: clock(each.at) }), h("span", { class: "who", text: each.tenant || "nobody" }),
      each.endpoint ? h("span", { class: "where mono", text: `→ ${each.endpoint}` }) : null,
      each.endpoint ? h("span", { class: "quiet", text: `${count(each.input_tokens)} in, ${count(each.output_tokens)} out` }) : null,
      tags, why),
    h("span", { class: "reason", text: each.reason }));
}

async function explain(each) {
  let found;
  try {
    found = await ask(`api/v1/explain/${encodeURIComponent(each.id)}`);
  } catch (error) {
    show("Why", facts([["reason then", each.reason], ["now", error.message]]));
    return;
  }
  const terms = (row) => Object.entries(row.terms).map(([name, value]) => `${name} ${value === null ? "∞" : Number(value.toPrecision(4))}`).join(", ");
  const expected = (row) => (row.forecast.ttft_ms === undefined ? "–" : `${ms(row.forecast.ttft_ms)}, then ${ms(row.forecast.tpot_ms)}`);
  const rows = (endpoints, title) => table(["endpoint", "verdict", "score", "TTFT, TPOT", "terms and reasons"], endpoints.map((each) => [
    each.address, each.verdict, each.score === null ? "–" : Number(each.score.toPrecision(5)), expected(each), [terms(each), ...each.why].filter(Boolean).join("; ")]), title);
  show(`Why ${each.tenant} went to ${each.endpoint || "nowhere"}`,
    facts([
      ["outcome", found.outcome], ["reason", found.reason], ["strategy", [found.strategy, found.arm].filter(Boolean).join(", arm ")],
      ["model, pool", [found.model, found.pool].filter(Boolean).join(", ")], ["degraded", found.degraded],
      ["expected", `TTFT ${ms(each.ttft_ms)}, ${count(each.input_tokens)} tokens in (${count(each.cached_tokens)} cached), ${count(each.output_tokens)} out`],
      ["scores", `of ${found.scores_of}; lower is better`], ["id", h("code", { text: found.id })],
    ]),
    rows(found.endpoints, `Endpoints, ${found.scores_of}`),
    found.now ? h("p", { text: `Now the same request ${found.now.outcome}` }) : null,
    found.now ? rows(found.now.endpoints, "Endpoints, now") : null);
}
