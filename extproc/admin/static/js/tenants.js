// Tenants: what they use of what they may, what waits, and how soon they are answered.

import { $, attr, bar, fill, h, keyed, say } from "./dom.js";
import { DASH, brief, count, ms, percent, plural } from "./format.js";

const COLUMNS = [
  { key: "name", head: "tenant", value: (t) => t.name, text: true },
  { key: "class", head: "class", value: (t) => t.class, text: true, opt: true },
  { key: "requests", head: "requests", value: (t) => t.decided + t.rejected, show: brief, opt: true },
  { key: "in_flight", head: "running", value: (t) => t.in_flight, show: count },
  { key: "held", head: "held", value: (t) => t.held, show: count },
  { key: "bad", head: "failed", value: (t) => t.failed + t.refused, show: count, alarm: true, opt: true },
  { key: "rejected", head: "rejected", value: (t) => t.rejected, show: count, alarm: true, opt: true },
  { key: "tokens", head: "tokens/s", value: (t) => t.tokens_per_s, show: brief, opt: true },
  { key: "p50", head: "TTFT p50", value: (t) => t.ttft_p50_ms, show: ms, opt: true },
  { key: "p99", head: "TTFT p99", value: (t) => t.ttft_p99_ms, show: ms },
];

const tenants = new Map();
const rows = new Map();
let leftOut = 0;
let sort = { key: "name", down: false };

export function reset(list) {
  tenants.clear();
  for (const each of list) tenants.set(each.name, each);
}

export function change({ tenants: changed, tenants_gone: gone, tenants_left_out: left }) {
  for (const each of changed || []) tenants.set(each.name, each);
  for (const name of gone || []) tenants.delete(name);
  leftOut = left;
}

export function begin() {
  const heads = COLUMNS.map((column) => h("th", { scope: "col", class: [column.text ? "" : "number", column.opt ? "opt" : ""].join(" ").trim(), "data-key": column.key },
    h("button", { type: "button", text: column.head, on: { click: () => by(column) } })));
  $("tenants-table").tHead.replaceChildren(h("tr", {}, heads, h("th", { scope: "col", "data-key": "quota" },
    h("button", { type: "button", text: "use of quota", on: { click: () => by({ key: "quota" }) } }))));
  $("tenants-filter").addEventListener("input", draw);
}

function by(column) {
  sort = { key: column.key, down: sort.key === column.key ? !sort.down : !column.text };
  draw();
}

const most = (tenant) => tenant.limits.reduce((found, each) => (!found || share(each) > share(found) ? each : found), null);
const share = (limit) => (limit.allowed ? limit.used / limit.allowed : 0);

function value(tenant) {
  if (sort.key === "quota") {
    const limit = most(tenant);
    return limit ? share(limit) : -1;
  }
  return COLUMNS.find((column) => column.key === sort.key).value(tenant) ?? -1;
}

export function draw() {
  const wanted = $("tenants-filter").value.trim().toLowerCase();
  const shown = [...tenants.values()].filter((tenant) => tenant.name.toLowerCase().includes(wanted));
  shown.sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    const order = typeof x === "string" ? x.localeCompare(y) : x - y;
    return (sort.down ? -order : order) || a.name.localeCompare(b.name);
  });
  for (const head of $("tenants-table").tHead.rows[0].cells) {
    attr(head, "aria-sort", head.dataset.key === sort.key ? (sort.down ? "descending" : "ascending") : null);
  }
  keyed($("tenants-table").tBodies[0], shown, (tenant) => tenant.name, make, alter, rows);
  say($("tenants-note"), `${plural(tenants.size, "tenant")}${leftOut ? `; the ${tenants.size} busiest, ${count(leftOut)} more by the API` : ""}`);
  const empty = $("tenants-empty");
  empty.hidden = shown.length > 0;
  say(empty, tenants.size ? "No tenant's name contains that." : "No tenant is configured.");
}

function make() {
  const cells = COLUMNS.map((column, i) => h(i ? "td" : "th", { scope: i ? null : "row", class: [column.text ? "" : "number", column.opt ? "opt" : ""].join(" ").trim() || null }));
  const meter = bar();
  const words = h("span", { class: "words" });
  const quota = h("td", { class: "quota" }, words, meter);
  return { element: h("tr", {}, cells, quota), cells, meter, words, quota };
}

function alter(row, tenant) {
  if (row.before === tenant) return;
  row.before = tenant;
  COLUMNS.forEach((column, i) => {
    const found = column.value(tenant);
    say(row.cells[i], column.show ? column.show(found) : found);
    if (column.alarm) row.cells[i].classList.toggle("bad", found > 0);
  });
  const limit = most(tenant);
  row.meter.hidden = !limit;
  if (!limit) {
    say(row.words, "no limit");
    attr(row.quota, "title", null);
    return;
  }
  const used = share(limit);
  fill(row.meter, used, used >= 0.98 ? "bad" : used > 0.85 ? "odd" : "");
  say(row.words, `${percent(used)} ${limit.limit.replaceAll("_", " ")}${limit.scope === "tenant" ? "" : ` (${limit.scope})`}`);
  attr(row.quota, "title", tenant.limits.map((each) => `${each.scope} ${each.limit}: ${count(each.used)} of ${count(each.allowed)}${each.throttled ? `, ${count(each.throttled)} refused by it` : ""}`).join("\n") || DASH);
}
