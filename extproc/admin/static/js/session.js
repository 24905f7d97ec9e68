// The token and what it may. It comes after the # of the address, which no server sees, and is kept for this tab.

const KEY = "steersman-token";
let token = "";
let may = { scopes: [], token: "", auth: "token" };
const listeners = [];

function stored() {
  try { return sessionStorage.getItem(KEY) || ""; } catch { return ""; }
}

export function begin() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  token = given || stored();
  if (given) {
    keep(given);
    history.replaceState(null, "", location.pathname + location.search);
  }
}

function keep(value) {
  token = value;
  try {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  } catch { /* kept in memory alone */ }
}

export const onChange = (listener) => listeners.push(listener);
export const canWrite = () => may.scopes.includes("write");
export const canRead = () => may.scopes.includes("read");
export const who = () => may;

export function headers(more = {}) {
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

/** Ask what we may; a wrong token is forgotten. Answers "" or what is wrong. */
export async function refresh() {
  const answer = await fetch("api/v1/session", { headers: headers(), cache: "no-store" });
  const body = await answer.json();
  if (!answer.ok) {
    if (answer.status === 401 && token) {
      keep("");
      await refresh();
    }
    return body.error ? body.error.message : `answer ${answer.status}`;
  }
  may = body;
  for (const listener of listeners) listener(may);
  return "";
}

export async function use(value) {
  keep(value.trim());
  return refresh();
}

/** A request to the API; throws with the message of the service. */
export async function ask(path, { method = "GET", body } = {}) {
  const options = { method, headers: headers(body === undefined ? {} : { "Content-Type": "application/json" }), cache: "no-store" };
  if (body !== undefined) options.body = JSON.stringify(body);
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("the service does not answer");
  }
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    const error = found.error || { message: `answer ${answer.status}` };
    throw new Error([error.message, ...(error.problems || [])].join("\n"));
  }
  return found;
}
