// Charts over the last minutes, by plotly out of its own package. Loaded when they come into sight.

import { $, h } from "./dom.js";
import { DASH, count, ms } from "./format.js";

const CHARTS = [
  { title: "Time to first token", unit: "ms", lines: [["p50", "ttft_p50_ms"], ["p99", "ttft_p99_ms"]], show: ms },
  { title: "Requests a second", unit: "", lines: [["placed", "placed"], ["refused", "refused"], ["errors", "errors"]], show: count },
  { title: "In flight and held", unit: "", lines: [["in flight", "in_flight"], ["held", "held"]], show: count },
  { title: "Time of a decision", unit: "ms", lines: [["p50", "decision_p50_ms"], ["p99", "decision_p99_ms"]], show: ms },
];
const KEPT = 900;
const EVERY_MS = 1000;
const SPAN_MIN_S = 60;
/** Where the extra is not installed, the service has no library to send. */
const MISSING = "No charts: the service needs the extra 'charts' for them, or its library could not be loaded.";

let points = [];
let spanS = 300;
let plotly = null;
let loading = null;
let visible = false;
let drawnAt = 0;
const figures = [];
/** Who draws with the library too: told when it is there, or why it is not. */
const others = [];

export function reset(list) {
  points = list.slice(-KEPT);
  draw(true);
}

export function add(point) {
  if (!point || (points.length && point.at <= points[points.length - 1].at)) return;
  points.push(point);
  if (points.length > KEPT) points.shift();
}

export function begin() {
  for (const chart of CHARTS) {
    const plot = h("div", { class: "plot", role: "img" }, h("p", { class: "empty", text: "Charts load when they are seen." }));
    const now = h("span", { class: "now" });
    $("plots").append(h("figure", {},
      h("figcaption", {}, h("span", { text: chart.title }), h("span", { class: "legend" }, chart.lines.map(([name], i) => h("span", { class: `c${i}`, text: name }))), now), plot));
    figures.push({ ...chart, plot, now });
  }
  for (const button of document.querySelectorAll("[data-span]")) {
    button.addEventListener("click", () => {
      spanS = Number(button.dataset.span);
      for (const each of document.querySelectorAll("[data-span]")) each.setAttribute("aria-pressed", String(each === button));
      draw(true);
    });
  }
  new IntersectionObserver((entries) => {
    visible = entries.some((entry) => entry.isIntersecting);
    if (visible) load();
  }, { rootMargin: "200px" }).observe($("charts"));
  document.addEventListener("themechange", () => draw(true));
}

export function whenLoaded(there, missing) {
  others.push({ there, missing });
}

export function load() {
  if (loading) return;
  // The page stands before five megabytes are asked for.
  loading = new Promise((done, failed) => {
    const script = h("script", { src: "static/vendor/plotly.min.js", on: { load: done, error: failed } });
    const go = () => {
      stylesAside(true);
      document.head.append(script);
    };
    if ("requestIdleCallback" in window) requestIdleCallback(go, { timeout: 1500 });
    else setTimeout(go, 200);
  }).finally(() => stylesAside(false)).then(() => {
    plotly = window.Plotly;
    draw(true);
    for (const each of others) each.there(plotly);
  }, () => {
    for (const each of others) each.missing(MISSING);
    for (const { plot } of figures) plot.replaceChildren(h("p", { class: "empty bad", text: MISSING }));
  });
}

/** While the library loads, its maps' styles stay inert: the policy lets none in, and no map is drawn here. */
function stylesAside(on) {
  delete document.createElement;
  if (!on) return;
  const make = document.createElement.bind(document);
  document.createElement = (tag, options) => make(tag === "style" ? "template" : tag, options);
}

export function draw(now = false) {
  for (const figure of figures) {
    const last = points[points.length - 1];
    const words = last ? figure.lines.map(([name, key]) => `${name} ${figure.show(last[key])}`).join(", ") : DASH;
    figure.plot.setAttribute("aria-label", `${figure.title}: now ${words}`);
  }
  if (!plotly || (!now && (!visible || document.hidden || performance.now() - drawnAt < EVERY_MS))) return;
  drawnAt = performance.now();
  // A young service's minutes are not squeezed into a corner.
  const end = points.length ? points[points.length - 1].at : Date.now() / 1000;
  const from = points.length ? Math.max(end - spanS, Math.min(points[0].at, end - SPAN_MIN_S)) : end - spanS;
  const shown = points.filter((point) => point.at >= from);
  const x = shown.map((point) => new Date(point.at * 1000));
  const [first, second, third] = colours();
  for (const figure of figures) {
    const empty = figure.plot.querySelector(":scope > .empty");
    if (empty) empty.remove();
    const traces = figure.lines.map(([name, key], i) => ({
      x, y: shown.map((point) => point[key]), name, type: "scatter", mode: "lines", connectgaps: false,
      line: { color: [first, second, third][i], width: 1.6 }, hovertemplate: `%{y:,.4~g}${figure.unit ? ` ${figure.unit}` : ""}`,
    }));
    plotly.react(figure.plot, traces, axes(from, end), { displayModeBar: false, responsive: true, showTips: false, doubleClick: false });
  }
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export const colours = () => [colour("--fill"), colour("--fill2"), colour("--bad")];

/** A chart's layout over a span, unix seconds. */
export function axes(from, end) {
  const axis = { gridcolor: colour("--line"), linecolor: colour("--line"), zeroline: false, fixedrange: true, tickfont: { size: 11, color: colour("--quiet") } };
  return {
    margin: { l: 44, r: 8, t: 8, b: 24 }, height: 168, showlegend: false, hovermode: "x unified", dragmode: false,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: "inherit", color: colour("--text"), size: 12 },
    hoverlabel: { bgcolor: colour("--panel"), bordercolor: colour("--line"), font: { color: colour("--text"), size: 12 } },
    xaxis: { ...axis, type: "date", range: [new Date(from * 1000), new Date(end * 1000)], tickformat: "%H:%M:%S", nticks: 5, hoverformat: "%H:%M:%S" },
    yaxis: { ...axis, rangemode: "tozero", nticks: 4, tickformat: "~s" },
  };
}

export const latest = () => points[points.length - 1] || null;
