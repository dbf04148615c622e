// The slices of the open case that the page knows: grey values, what is drawn, what is filled.

import { ask } from "./api.js";
import { isWhole } from "./pixels.js";

const BYTES = 48e6;

export class Slices {
  constructor(facts, version) {
    this.facts = facts;
    this.version = version;
    this.known = new Map();
  }

  key(plane, k) { return `${plane}/${k}`; }

  /** The slice, as far as it is known; see `load`. */
  get(plane, k) {
    const key = this.key(plane, k);
    let slice = this.known.get(key);
    if (!slice) {
      const url = `/api/cases/${this.facts.n}/label/${key}`;
      slice = { plane, k, key, url, shape: this.facts.planes[plane].shape, grey: {}, stale: true };
    }
    this.known.delete(key);
    this.known.set(key, slice);
    this.trim();
    return slice;
  }

  trim() {
    let bytes = 0;
    for (const slice of [...this.known.values()].reverse()) {
      const pixels = slice.shape[0] * slice.shape[1];
      bytes += pixels * (2 + 2 * Object.keys(slice.grey).length);
      if (bytes > BYTES && !slice.dirty && !slice.busy) this.known.delete(slice.key);
    }
  }

  ready(slice, channel) { return slice.grey[channel] && slice.drawn; }

  /** Fetch what is missing or stale. */
  async load(slice, channel) {
    const work = [];
    if (!slice.grey[channel]) work.push(this.loadGrey(slice, channel));
    if (slice.stale) slice.request = this.loadLabel(slice);
    if (slice.loading) work.push(slice.request);
    await Promise.all(work);
    return slice;
  }

  async loadGrey(slice, channel) {
    const url = `/api/cases/${this.facts.n}/slice/${slice.key}?c=${channel}&v=${this.version}`;
    const bytes = await (await ask("GET", url)).arrayBuffer();
    slice.grey[channel] = new Uint16Array(bytes);
  }

  async loadLabel(slice) {
    slice.asked = (slice.asked || 0) + 1;
    const mine = slice.asked;
    slice.stale = false;
    slice.loading = true;
    try {
      const response = await ask("GET", slice.url);
      const bytes = new Uint8Array(await response.arrayBuffer());
      if (mine !== slice.asked) return;
      slice.loading = false;
      const pixels = bytes.length / 2;
      slice.filled = bytes.slice(pixels);
      if (slice.dirty || slice.busy) return;
      slice.drawn = bytes.slice(0, pixels);
      slice.revision = Number(response.headers.get("ETag").replaceAll('"', ""));
    } catch (error) {
      slice.stale = true;
      slice.loading = false;
      throw error;
    }
  }

  /** Whether a slice may be drawn on: not in the moment in which its filled labels arrive. */
  settled(slice) {
    return Boolean(slice.drawn) && (isWhole(slice.drawn) || !slice.loading);
  }

  /** Labels of some slices have changed on the server. */
  spoil(test) {
    for (const slice of this.known.values()) if (test(slice)) slice.stale = true;
  }
}
