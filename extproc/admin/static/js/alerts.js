// Alerts: what fires now, at the top of the page too, and what did of late.

import { $, h, say } from "./dom.js";
import { clock, plural } from "./format.js";

// Alerts have labels and annotations, as Prometheus' Alertmanager writes them.
const SAID = ["alertname", "severity"];
const name = (alert) => alert.labels.alertname || "alert";
const text = (alert) => [alert.annotations.summary, alert.annotations.description].filter(Boolean).join(" ");
const about = (alert) => [alert.labels.severity, ...Object.entries(alert.labels).filter(([label]) => !SAID.includes(label)).map(([label, value]) => `${label} ${value}`)].filter(Boolean).join(" · ");
const when = (alert) => Date.parse(alert.startsAt) / 1000;

// Names other than these are an operator's own: as grave as can be.
const MILD = ["info", "warning"];
const worst = (alerts) => alerts.map((alert) => alert.labels.severity).reduce((one, other) => {
  const [a, b] = [MILD.indexOf(one), MILD.indexOf(other)];
  return a < 0 || b < 0 ? "critical" : MILD[Math.max(a, b)];
}, "info");

export function take(view) {
  const body = $("alerts-body");
  const banner = $("banner");
  if (view === null || view === undefined) {
    body.replaceChildren(h("p", { class: "empty", text: "Alerts are not switched on in this service." }));
    say($("alerts-note"), "");
    banner.hidden = true;
    return;
  }
  const { firing = [], pending = [], recent = [] } = view;
  say($("alerts-note"), firing.length ? `${firing.length} firing` : "");
  banner.hidden = !firing.length;
  banner.dataset.severity = worst(firing);
  if (firing.length) say(banner, `${plural(firing.length, "alert")}: ${firing.map((alert) => [name(alert), text(alert)].filter(Boolean).join(", ")).join("; ")}`);
  const part = (title, alerts) => (alerts.length ? [h("details", {}, h("summary", { text: `${alerts.length} ${title}` }), alerts.map((alert) => card(alert, false)))] : []);
  const open = [...body.querySelectorAll("details[open] > summary")].map((summary) => summary.textContent.replace(/^\d+ /, ""));
  body.replaceChildren(
    ...firing.map((alert) => card(alert, true)),
    ...(firing.length ? [] : [h("p", { class: "empty", text: "Nothing fires." })]),
    ...part("pending", pending), ...part("of late", recent));
  for (const summary of body.querySelectorAll("details > summary")) summary.parentElement.open = open.includes(summary.textContent.replace(/^\d+ /, ""));
}

function time(alert) {
  const from = when(alert);
  const to = alert.status === "resolved" ? Date.parse(alert.endsAt) / 1000 : NaN;
  if (Number.isNaN(from)) return "";
  return Number.isNaN(to) ? `since ${clock(from)}` : `${clock(from)} to ${clock(to)}`;
}

function card(alert, fires) {
  const grave = fires ? worst([alert]) : null;
  return h("article", { class: fires ? "card firing" : "card", "data-severity": grave },
    h("div", { class: "head" }, h("h3", { class: grave === "critical" ? "bad" : null, text: name(alert) }), h("p", { class: "note", text: [about(alert), time(alert)].filter(Boolean).join(" · ") })),
    text(alert) ? h("p", { text: text(alert) }) : null);
}
