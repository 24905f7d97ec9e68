// Puts the page together: events into the parts, the parts onto the page, once a frame at the most.

import * as alerts from "./alerts.js";
import * as cache from "./cache.js";
import * as charts from "./charts.js";
import * as decisions from "./decisions.js";
import { confirm } from "./dialog.js";
import { $, h, say } from "./dom.js";
import * as experiments from "./experiments.js";
import * as fleet from "./fleet.js";
import { brief, count, ms } from "./format.js";
import * as scaling from "./scaling.js";
import * as session from "./session.js";
import { Stream } from "./stream.js";
import * as tenants from "./tenants.js";

const NUMBERS = [
  ["requests/s", (f) => brief(f.point?.placed ?? 0)], ["in flight", (f) => count(f.in_flight)], ["held", (f) => count(f.held)],
  ["TTFT p50", (f) => ms(f.point?.ttft_p50_ms)], ["TTFT p99", (f) => ms(f.point?.ttft_p99_ms)],
  ["tokens/s", (f) => brief(f.point?.output_tokens ?? 0)], ["refused/s", (f) => count(f.point?.refused ?? 0)],
  ["errors/s", (f) => count(f.point?.errors ?? 0)], ["decision p99", (f) => ms(f.point?.decision_p99_ms)],
];
const dds = [];
let figures = null;
let frame = 0;
let instance = "";

function draw() {
  frame = 0;
  if (!figures) return;
  NUMBERS.forEach(([name, value], i) => {
    say(dds[i], value(figures));
    dds[i].className = (name === "errors/s" && figures.point?.errors) || (name === "refused/s" && figures.point?.refused) ? "bad" : "";
  });
  fleet.draw();
  tenants.draw();
  charts.draw();
}

// A page in the background draws nothing, and all of it when it comes back.
const soon = () => { frame ||= requestAnimationFrame(draw); };

function on(event, data) {
  if (event === "snapshot") {
    if (instance && instance !== data.instance) decisions.reset([]);
    instance = data.instance;
    say($("instance"), data.instance);
    say($("version"), `Steersman ${data.version}`);
    fleet.reset(data.endpoints);
    tenants.reset(data.tenants);
    decisions.reset(data.decisions);
    charts.reset(data.points);
    alerts.take(data.alerts);
    take(data);
    experiments.take(data.experiments);
    scaling.reset(data.scaling);
    cache.take(data.cache);
  } else if (event === "figures") take(data);
  else if (event === "decisions") decisions.add(data);
  else if (event === "alerts") alerts.take(data);
  else if (event === "experiments") experiments.take(data);
  else if (event === "scaling") scaling.take(data);
  else if (event === "cache") cache.take(data);
}

function take(data) {
  figures = data;
  fleet.change(data);
  tenants.change(data);
  charts.add(data.point);
  experiments.setPools(data.pools);
  soon();
}

function state(name, words) {
  const place = $("connection");
  place.dataset.state = name === "denied" ? "lost" : name;
  document.body.dataset.connection = name;
  say(place.querySelector(".words"), words);
}

function accessDialog() {
  const who = session.who();
  const now = who.token ? `Token ${who.token}: ${session.canWrite() ? "may look and give orders" : "may look"}.`
    : session.canWrite() ? "No token is needed here, for anything." : session.canRead() ? "No token: you may look. Orders need one that may write." : "A token is needed to look.";
  confirm("Access", `${now} A token is kept for this tab alone.`, "Use this token", async ({ token }) => {
    const wrong = await session.use(token);
    stream.restart();
    if (wrong) throw new Error(wrong);
  }, { fields: [{ label: "Token (empty: none)", name: "token", type: "password" }] });
}

function themes() {
  const root = document.documentElement;
  const button = $("theme");
  const words = () => say(button, `Theme: ${root.dataset.theme}`);
  button.addEventListener("click", () => {
    const next = { auto: "light", light: "dark", dark: "auto" }[root.dataset.theme] || "auto";
    root.dataset.theme = next;
    try { localStorage.setItem("steersman-theme", next); } catch { /* for this page alone, then */ }
    words();
    document.dispatchEvent(new Event("themechange"));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("themechange")));
  words();
}

const stream = new Stream({ on, state });

session.begin();
themes();
tenants.begin();
decisions.begin();
experiments.begin();
charts.begin();
scaling.begin();
cache.begin();
$("numbers").firstElementChild.append(...NUMBERS.map(([name]) => {
  const value = h("dd", { text: "–" });
  dds.push(value);
  return h("div", {}, h("dt", { text: name }), value);
}));
$("access").addEventListener("click", accessDialog);
session.onChange((who) => {
  say($("access"), who.token ? `Access: ${session.canWrite() ? "write" : "read"}` : session.canWrite() ? "Access: open" : "Access");
  experiments.draw();
});
session.refresh().catch(() => "").finally(() => {
  stream.restart();
  if (!session.canRead() && session.who().auth === "token" && session.who().version) accessDialog();
});
