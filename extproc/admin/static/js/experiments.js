// Experiments with their figures, and the strategies that there are.

import { $, h } from "./dom.js";
import { DASH, count, ms } from "./format.js";
import { confirm, table } from "./dialog.js";
import { ask, canWrite } from "./session.js";

let known = null;
let strategies = null;
let pools = [];

export function take(list) {
  known = list;
  draw();
}

export function setPools(list) {
  pools = list;
}

const interval = (found) => (found.count ? `${(100 * found.mean).toFixed(1)}% [${(100 * found.low).toFixed(1)}, ${(100 * found.high).toFixed(1)}]` : DASH);

export function draw() {
  $("experiment-new").hidden = !canWrite();
  if (known === null) return;
  const body = $("experiments-body");
  if (!known.length) {
    body.replaceChildren(h("p", { class: "empty", text: "No experiment runs: every pool goes its own strategy's way." }));
    return;
  }
  const open = document.activeElement && body.contains(document.activeElement) ? document.activeElement.dataset.name : null;
  body.replaceChildren(...known.map(card));
  if (open) body.querySelector(`[data-name="${CSS.escape(open)}"]`)?.focus();
}

function card(each) {
  const stop = canWrite() ? h("button", { type: "button", class: "plain", text: "Stop…", "data-name": each.name, on: { click: () => stopDialog(each) } }) : null;
  return h("article", { class: "card" },
    h("div", { class: "head" }, h("h3", { text: each.name }), h("p", { class: "note", text: `${each.state}${each.ended ? ` (${each.ended})` : ""} on ${each.pools.join(", ")}, by ${each.split}` }), stop),
    each.arms.length ? table(["arm", "strategy", "share", "requests", "attained", "TTFT p50"], each.arms.map((arm) => [
      arm.name + (arm.stopped ? " (stopped)" : ""), arm.strategy, `${Math.round(arm.share * 100)}%`, count(arm.requests),
      interval(arm.attainment), ms(arm.ttft_ms.p50)]), `Arms of ${each.name}`) : null,
    each.verdict.map((words) => h("p", { text: words })),
    each.shadow ? h("p", { class: "quiet", text: `shadow ${each.shadow.strategy}: asked ${count(each.shadow.asked)} times, agreed ${each.shadow.agreement === null ? DASH : `${(100 * each.shadow.agreement).toFixed(1)}%`}` }) : null);
}

function stopDialog(each) {
  const fields = [{ label: "Why (for the history)", name: "why", required: true, maxlength: 400 }];
  if (each.arms.length) fields.push({ label: "Afterwards", name: "keep", options: ["the pools' own strategy", ...each.arms.map((arm) => arm.name)] });
  confirm(`Stop ${each.name}?`, "It is taken out of the configuration; its last figures stay until the service ends.", "Stop", ({ why, keep }) => {
    const arm = each.arms.some((one) => one.name === keep) ? keep : null;
    return ask(`api/v1/experiments/${encodeURIComponent(each.name)}/stop`, { method: "POST", body: { why, keep: arm } });
  }, { fields, danger: true });
}

async function newDialog() {
  await loadStrategies();
  const own = (strategies || []).filter((each) => each.own).map((each) => each.name);
  confirm("New experiment", "Two strategies side by side on one pool. It is checked, then written into the configuration, and taken within two seconds.", "Start", (form) => {
    const experiment = {
      pools: [form.pool], split: form.split,
      arms: { control: { strategy: form.control }, other: { strategy: form.other, share: Number(form.share) / 100 } },
    };
    return ask(`api/v1/experiments/${encodeURIComponent(form.name)}/start`, { method: "POST", body: { experiment, why: form.why } });
  }, {
    fields: [
      { label: "Name (a-z, 0-9, -)", name: "name", required: true, maxlength: 63, pattern: "[a-z0-9]([a-z0-9._\\-]*[a-z0-9])?" },
      { label: "Pool", name: "pool", options: pools.map((pool) => pool.name) },
      { label: "Control", name: "control", options: own }, { label: "Compared with", name: "other", options: [...own].reverse() },
      { label: "Its share of the traffic, %", name: "share", type: "number", min: 1, max: 99, value: 10, required: true },
      { label: "Drawn by", name: "split", options: ["request", "session", "tenant"] },
      { label: "Why (for the history)", name: "why", required: true, maxlength: 400 },
    ],
  });
}

async function loadStrategies() {
  if (strategies === null) strategies = (await ask("api/v1/strategies")).strategies;
}

export function begin() {
  $("experiment-new").addEventListener("click", newDialog);
  $("strategies").addEventListener("toggle", async () => {
    if (!$("strategies").open) return;
    const body = $("strategies-body");
    try {
      await loadStrategies();
    } catch (error) {
      body.replaceChildren(h("p", { class: "bad", text: error.message }));
      return;
    }
    body.replaceChildren(table(["strategy", "what it does", "pools"], strategies.map((each) => [
      each.name, each.summary + (each.own ? "" : " (another project's, to compare with)"), each.pools.join(", ") || DASH]), "Strategies"));
  });
}
