// Elements and texts. Everything that comes from the service becomes a text node: no markup is ever parsed.

/** An element. `props` are attributes; `class`, `text`, `on` (handlers) and `style` (custom) read specially. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") element.className = value;
    else if (name === "text") element.textContent = value;
    else if (name === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child);
  }
  return element;
}

export const $ = (id) => document.getElementById(id);

/** Set a text only where it differs: what has not changed is not laid out again. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function attr(element, name, value) {
  if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, String(value));
}

/** A bar of a share from 0 to 1; its words stand beside it, so it is hidden from readers. */
export function bar(kind = "") {
  const inner = h("i");
  return h("span", { class: `bar ${kind}`.trim(), "aria-hidden": "true" }, inner);
}

export function fill(element, share, kind = "") {
  element.firstChild.style.width = `${Math.round(Math.min(1, Math.max(0, share || 0)) * 1000) / 10}%`;
  const wanted = `bar ${kind}`.trim();
  if (element.className !== wanted) element.className = wanted;
}

/** Keep a list's elements by key: made once, changed in place, in the order given. */
export function keyed(parent, items, key, make, change, kept) {
  const seen = new Set();
  let before = null;
  for (const item of items) {
    const name = key(item);
    seen.add(name);
    let entry = kept.get(name);
    if (!entry) {
      entry = make(item);
      kept.set(name, entry);
    }
    change(entry, item);
    const wanted = before ? before.nextSibling : parent.firstChild;
    if (wanted !== entry.element) parent.insertBefore(entry.element, wanted);
    before = entry.element;
  }
  for (const [name, entry] of kept) {
    if (!seen.has(name)) {
      entry.element.remove();
      kept.delete(name);
    }
  }
}
