// The one dialog: facts, questions, and a confirmation before every order. The browser keeps the focus in it.

import { $, h } from "./dom.js";

let onClose = null;

/** Show a title and parts; answers when it is closed. */
export function show(title, ...parts) {
  const dialog = $("dialog");
  if (dialog.open) dialog.close();
  const close = h("button", { type: "button", class: "plain", text: "Close", on: { click: () => dialog.close() } });
  dialog.replaceChildren(h("div", { class: "head" }, h("h2", { id: "dialog-h", text: title }), close), ...parts.filter(Boolean));
  dialog.showModal();
  return new Promise((done) => {
    onClose = done;
    dialog.onclose = () => onClose && onClose();
  });
}

export function close() {
  $("dialog").close();
}

export function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.filter(([, value]) => value !== null && value !== "").map(([name, value]) =>
    [h("dt", { text: name }), h("dd", {}, value instanceof Node ? value : String(value))]));
}

/** Ask before an order is given; `work` does it, and what it throws is shown where it was asked. */
export function confirm(title, text, word, work, { fields = [], danger = false } = {}) {
  const wrong = h("p", { class: "bad", role: "alert" });
  const inputs = fields.map(({ label, ...rest }) => {
    const input = rest.options
      ? h("select", { name: rest.name }, rest.options.map((option) => h("option", { value: option, text: option })))
      : h("input", { type: "text", autocomplete: "off", ...rest });
    return h("label", {}, h("span", { class: "quiet", text: label }), input);
  });
  const go = h("button", { type: "submit", class: danger ? "plain danger" : "plain main", text: word });
  const form = h("form", {
    on: {
      submit: async (event) => {
        event.preventDefault();
        go.disabled = true;
        wrong.textContent = "";
        try {
          await work(Object.fromEntries(new FormData(form)));
          close();
        } catch (error) {
          wrong.textContent = error.message;
          go.disabled = false;
        }
      },
    },
  }, h("p", { text }), inputs, wrong, h("div", { class: "actions" }, go));
  return show(title, form);
}

export function table(heads, rows, caption) {
  return h("div", { class: "scroll" }, h("table", {},
    h("caption", { class: "hidden", text: caption }),
    h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col", text: head })))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, i) =>
      i === 0 ? h("th", { scope: "row", text: cell }) : h("td", {}, cell instanceof Node ? cell : String(cell))))))));
}
