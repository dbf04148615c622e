// The server: requests with the token, a queue of slices to save, and events.

const STORED = "contextseg-token";
export const WHO = Math.random().toString(36).slice(2, 12);

function takeToken() {
  const given = decodeURIComponent(location.hash.slice(1));
  if (given) {
    sessionStorage.setItem(STORED, given);
    history.replaceState(null, "", location.pathname);
  }
  return given || sessionStorage.getItem(STORED) || "";
}

const token = takeToken();

export class Refused extends Error {
  constructor(status, content) {
    super(content.error || `the server answered ${status}`);
    this.status = status;
    this.content = content;
  }
}

/** Ask the server; a `Refused` where it says no, a TypeError where it is not there. */
export async function ask(method, path, { body, headers, signal } = {}) {
  const response = await fetch(path, {
    method, body, signal,
    headers: { Authorization: `Bearer ${token}`, ...headers },
  });
  if (response.ok) return response;
  let content = {};
  try { content = await response.json(); } catch { /* no reason given */ }
  throw new Refused(response.status, content);
}

export const askJson = async (method, path, options) =>
  (await ask(method, path, options)).json();

/** Save slices one after the other; each is kept until the server has it. */
export class Saver {
  constructor(show, conflict) {
    this.show = show;          // (state, reason)
    this.conflict = conflict;  // (slice, message)
    this.waiting = new Map();
    this.busy = false;
    this.retryAfter = 1000;
    this.idleWaiters = [];
  }

  /** Save a slice: {url, drawn, revision, ...}; its newest content is what counts. */
  put(slice, tool, seconds, fill) {
    const before = this.waiting.get(slice);
    this.waiting.set(slice, { tool, seconds: seconds + (before ? before.seconds : 0), fill });
    slice.dirty = true;
    slice.version = (slice.version || 0) + 1;
    this.show("saving");
    this.run();
  }

  get unsaved() { return this.waiting.size; }

  /** Resolves with whether everything is saved, when nothing more can be done for now. */
  idle() {
    if (!this.busy) return Promise.resolve(!this.waiting.size);
    return new Promise((resolve) => this.idleWaiters.push(resolve));
  }

  async run() {
    if (this.busy) return;
    this.busy = true;
    clearTimeout(this.timer);
    for (const [slice, change] of [...this.waiting]) {
      if (slice.conflict) continue;
      if (!(await this.send(slice, change))) break;
    }
    this.busy = false;
    const again = [...this.waiting.keys()].some((s) => !s.conflict);
    if (again && !this.failed) return this.run();
    if (again) this.timer = setTimeout(() => this.run(), this.retryAfter);
    if (!this.waiting.size) this.show("saved");
    this.idleWaiters.splice(0).forEach((resolve) => resolve(!this.waiting.size));
  }

  async send(slice, change) {
    const { version } = slice;
    const query = new URLSearchParams({
      tool: change.tool, seconds: change.seconds.toFixed(1), who: WHO, fill: change.fill ? "1" : "0",
    });
    try {
      const answer = await askJson("PUT", `${slice.url}?${query}`, {
        body: slice.drawn.slice(),
        headers: { "If-Match": `"${slice.revision}"` },
      });
      slice.revision = answer.revision;
      this.failed = false;
      this.retryAfter = 1000;
      if (slice.version === version) {
        this.waiting.delete(slice);
        slice.dirty = false;
      } else {
        change.seconds = 0;
      }
      if (this.saved) this.saved(slice);
      return true;
    } catch (error) {
      if (error.status === 409) {
        slice.conflict = error.content.revision;
        this.show("failed", error.message);
        this.conflict(slice, error.message);
        return true;
      }
      this.failed = true;
      this.retryAfter = Math.min(15000, 2 * this.retryAfter);
      const lost = error instanceof Refused ? error.message : "the server does not answer";
      this.show("failed", lost);
      return false;
    }
  }

  /** After a conflict: keep ours (and overwrite), or drop it. */
  settle(slice, keep) {
    if (keep) slice.revision = slice.conflict;
    else this.waiting.delete(slice);
    slice.conflict = null;
    slice.dirty = keep;
    if (!this.waiting.size) this.show("saved");
    this.run();
  }
}

/** Hear the server's events for ever; `lost` and `back` say when the line breaks and is there. */
export async function listen(heard, lost, back) {
  for (;;) {
    try {
      const response = await ask("GET", "/api/events");
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      back();
      let text = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        text += value;
        const parts = text.split("\n\n");
        text = parts.pop();
        for (const part of parts) {
          if (part.startsWith("data: ")) heard(JSON.parse(part.slice(6)));
        }
      }
    } catch (error) {
      if (error.status === 403) return lost(error.message, true);
    }
    lost("the server does not answer: is the program still running?");
    await new Promise((resolve) => setTimeout(resolve, 1500));
  }
}
