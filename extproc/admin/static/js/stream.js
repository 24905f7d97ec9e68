// Live events over fetch, so that the token goes in a header. Owns reconnecting, and how old what is shown is.

import { headers } from "./session.js";

const SILENT_MS = 5000; // figures come twice a second: this long without any is no connection
const AGAIN_MS = [500, 1000, 2000, 4000];

export class Stream {
  /** `on(event, data)` for each event, `state(name, words)` when the connection changes. */
  constructor({ on, state }) {
    this.on = on;
    this.state = state;
    this.lastId = "";
    this.heardAt = 0;
    this.failures = 0;
    this.running = 0;
    this.denied = "";
    setInterval(() => this.look(), 500);
  }

  /** Begin, or begin anew with another token. */
  restart() {
    this.lastId = "";
    this.failures = 0;
    this.denied = "";
    this.running += 1;
    if (this.abort) this.abort.abort();
    this.loop(this.running);
  }

  async loop(turn) {
    while (turn === this.running) {
      try {
        await this.follow(turn);
      } catch { /* whatever it was, the next try tells */ }
      if (turn !== this.running || this.denied) return;
      this.look();
      const wait = AGAIN_MS[Math.min(this.failures, AGAIN_MS.length - 1)];
      this.failures += 1;
      await new Promise((done) => setTimeout(done, wait));
    }
  }

  async follow(turn) {
    this.abort = new AbortController();
    const silent = setInterval(() => {
      if (performance.now() - this.beat > SILENT_MS) this.abort.abort();
    }, 500);
    this.beat = performance.now();
    try {
      const asked = headers(this.lastId ? { "Last-Event-ID": this.lastId } : {});
      const answer = await fetch("api/v1/events", { headers: asked, signal: this.abort.signal, cache: "no-store" });
      if (answer.status === 401 || answer.status === 403) {
        this.denied = "a token is needed to look";
        this.state("denied", this.denied);
        return;
      }
      if (!answer.ok) throw new Error(`answer ${answer.status}`);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done || turn !== this.running) return;
        this.beat = performance.now();
        rest += value;
        const parts = rest.split("\n\n");
        rest = parts.pop();
        for (const part of parts) this.take(part);
      }
    } finally {
      clearInterval(silent);
    }
  }

  take(part) {
    let event = "message";
    let data = "";
    let id = null;
    for (const line of part.split("\n")) {
      if (line.startsWith("event: ")) event = line.slice(7);
      else if (line.startsWith("data: ")) data += line.slice(6);
      else if (line.startsWith("id: ")) id = line.slice(4);
    }
    if (!data) return;
    this.on(event, JSON.parse(data));
    if (id !== null) this.lastId = id;
    this.heardAt = performance.now();
    this.failures = 0;
    this.look();
  }

  look() {
    if (this.denied) return;
    if (!this.heardAt) {
      this.state(this.failures > 1 ? "lost" : "connecting", this.failures > 1 ? "no connection, trying again" : "connecting");
      return;
    }
    const age = (performance.now() - this.heardAt) / 1000;
    if (age < 2.5) this.state("live", "live");
    else this.state("lost", `connection lost, data is ${Math.round(age)} s old`);
  }
}
