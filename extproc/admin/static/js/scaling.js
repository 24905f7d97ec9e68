// Pools that scale: arrivals and their forecast, replicas wanted and had, why, what it costs; and what binds each pool.

import { axes, colours, load, whenLoaded } from "./charts.js";
import { $, h, say } from "./dom.js";
import { DASH, clock, count, plural, span } from "./format.js";
import { ask } from "./session.js";

const KEPT = 1000;
const EVERY_MS = 1000;
const BOUNDS = { min: "min_replicas", max: "max_replicas", budget: "budget_per_hour", step: "one step at a time", hold: "fewer must have been enough for longer", schedule: "the schedule" };
const decimal = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });

const cards = new Map();
let pools = [];
let advice = [];
let plotly = null;
let visible = false;
let drawnAt = 0;

/** What a snapshot holds; the past is asked for, since live events carry the newest point alone. */
export async function reset(data) {
  take(data);
  if (!pools.length) return;
  try {
    const known = await ask("api/v1/scaling?points=300");
    for (const pool of known.pools) {
      const card = cards.get(pool.pool);
      if (!card) continue;
      const last = pool.points.length ? pool.points[pool.points.length - 1].at : 0;
      card.points = [...pool.points, ...card.points.filter((point) => point.at > last)].slice(-KEPT);
    }
    draw(true);
  } catch { /* the past stays away; what comes is shown */ }
}

export function take(data) {
  if (!data) return;
  ({ pools, advice } = data);
  $("scaling").hidden = !pools.length;
  $("scaling-link").hidden = !pools.length;
  const seen = new Set(pools.map((pool) => pool.pool));
  for (const [name, card] of cards) {
    if (seen.has(name)) continue;
    card.element.remove();
    cards.delete(name);
  }
  for (const pool of pools) {
    let card = cards.get(pool.pool);
    if (!card) {
      card = make(pool.pool);
      cards.set(pool.pool, card);
      $("scaling-body").append(card.element);
    }
    const last = card.points[card.points.length - 1];
    if (!last || pool.point.at > last.at) card.points = [...card.points, pool.point].slice(-KEPT);
    words(card, pool);
  }
  say($("scaling-note"), data.pools_left_out ? `${count(data.pools_left_out)} more pools are not shown` : "");
  draw();
}

function make(name) {
  const parts = Object.fromEntries(["now", "counts", "why", "bound", "advice"].map((part) => [part, h("p", { class: part === "why" ? "" : "note" })]));
  const load_ = plot("Requests a second and their forecast", ["arrivals", "forecast"]);
  const replicas = plot("Replicas", ["wanted", "ready", "loading"]);
  const element = h("article", { class: "card", "data-pool": name },
    h("div", { class: "head" }, h("h3", { text: name }), parts.counts),
    parts.now, parts.why, parts.bound, parts.advice, h("div", { class: "plots" }, load_.figure, replicas.figure));
  return { element, ...parts, points: [], load: load_.plot, replicas: replicas.plot };
}

function plot(title, names) {
  const element = h("div", { class: "plot", role: "img" }, h("p", { class: "empty", text: "Charts load when they are seen." }));
  const legend = h("span", { class: "legend" }, names.map((name, i) => h("span", { class: `c${i}`, text: name })));
  return { plot: element, figure: h("figure", {}, h("figcaption", {}, h("span", { text: title }), legend), element) };
}

const band = (forecast) => `${decimal.format(forecast.median)} [${decimal.format(forecast.low)}, ${decimal.format(forecast.high)}]`;

function words(card, pool) {
  const cost = pool.cost_per_hour ? `, ${decimal.format(pool.cost_per_hour)} an hour` : "";
  say(card.counts, `${plural(pool.wanted, "replica")} wanted: ${count(pool.ready)} ready, ${count(pool.loading)} loading, ${count(pool.draining)} draining${cost}`);
  say(card.now, `${decimal.format(pool.now.requests_per_s)} requests/s now, ${band(pool.forecast)} in ${span(pool.forecast.ahead_s)} (${pool.forecast.method})${pool.held ? `, ${count(pool.held)} held` : ""}`);
  say(card.why, pool.why || DASH);
  card.bound.hidden = !pool.bound;
  say(card.bound, pool.bound ? `kept by ${BOUNDS[pool.bound] || pool.bound}` : "");
  const found = advice.find((each) => each.pool === pool.pool && each.bound !== "unknown");
  card.advice.hidden = !found;
  say(card.advice, found ? `bound by ${found.bound}: ${found.why}` : "");
  card.load.setAttribute("aria-label", `Requests a second: now ${decimal.format(pool.now.requests_per_s)}, forecast ${band(pool.forecast)}`);
  card.replicas.setAttribute("aria-label", `Replicas at ${clock(pool.at)}: ${pool.wanted} wanted, ${pool.ready} ready, ${pool.loading} loading`);
}

export function draw(now = false) {
  if (!plotly || !pools.length || (!now && (!visible || document.hidden || performance.now() - drawnAt < EVERY_MS))) return;
  drawnAt = performance.now();
  const options = { displayModeBar: false, responsive: true, showTips: false, doubleClick: false };
  for (const pool of pools) {
    const { points, load: loads, replicas } = cards.get(pool.pool);
    for (const element of [loads, replicas]) element.querySelector(":scope > .empty")?.remove();
    const from = points[0].at;
    const end = points[points.length - 1].at;
    const ahead = pool.forecast.ahead_s;
    const at = points.map((point) => new Date(point.at * 1000));
    // A forecast stands where it speaks of, not where it was made.
    const then = points.map((point) => new Date((point.at + ahead) * 1000));
    const [first, second, third] = colours();
    const line = (name, key, colour, more = {}) => ({ x: at, y: points.map((point) => point[key]), name, type: "scatter", mode: "lines", line: { color: colour, width: 1.6, ...more }, hovertemplate: "%{y:,.4~g}" });
    const edge = (name, key, more) => ({ ...line(name, key, second, { width: 0 }), x: then, ...more });
    const forecast = [edge("low", "low", {}), edge("high", "high", { fill: "tonexty", fillcolor: faint(second) }), { ...line("forecast", "median", second), x: then }];
    plotly.react(loads, [...forecast, line("arrivals", "requests_per_s", first)], axes(from, end + ahead), options);
    plotly.react(replicas, [line("ready", "ready", second, { shape: "hv" }), line("loading", "loading", third, { shape: "hv", dash: "dot" }), line("wanted", "wanted", first, { shape: "hv" })], axes(from, end), options);
  }
}

/** A colour, a quarter of it: plotly knows rgba and no colour-mix. */
function faint(colour) {
  const probe = document.createElement("canvas").getContext("2d");
  probe.fillStyle = colour;
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(probe.fillStyle.slice(at, at + 2), 16));
  return `rgba(${r},${g},${b},0.22)`;
}

export function begin() {
  new IntersectionObserver((entries) => {
    visible = entries.some((entry) => entry.isIntersecting);
    if (visible) load();
  }, { rootMargin: "200px" }).observe($("scaling"));
  whenLoaded((library) => {
    plotly = library;
    draw(true);
  }, (why) => {
    for (const card of cards.values()) for (const element of [card.load, card.replicas]) element.replaceChildren(h("p", { class: "empty bad", text: why }));
  });
  document.addEventListener("themechange", () => draw(true));
}
