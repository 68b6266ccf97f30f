// The engine's state, put together from the events of /debug/engine. No drawing here.

const MAX_STEPS = 400;
const MAX_NOTES = 6;
const RATE_WINDOW = 3000; // ms

export class EngineState {
  constructor() {
    this.reset();
  }

  reset() {
    this.config = null;
    this.stats = null;
    this.waiting = [];
    this.steps = []; // the last ones
    this.tables = new Map(); // request -> its blocks, in order
    this.owners = new Map(); // block -> the requests that have it
    this.cached = new Set();
    this.highest = 0; // of the blocks ever used
    this.requests = new Map(); // running request -> its last share of a step
    this.notes = []; // what happened, newest first
    this.numFinished = 0;
    this.generated = []; // [time, tokens]
  }

  take(event, now = performance.now()) {
    if (event.config) this.config = event.config;
    this.takeBlocks(event.blocks);
    for (const step of event.steps) this.takeStep(step, now);
    if (this.steps.length > MAX_STEPS) this.steps.splice(0, this.steps.length - MAX_STEPS);
    for (const requestId of this.requests.keys()) if (!this.tables.has(requestId)) this.requests.delete(requestId);
    this.waiting = event.waiting;
    this.stats = event.stats;
  }

  takeBlocks(changes) {
    if (changes.is_snapshot) {
      this.tables.clear();
      this.owners.clear();
      this.cached.clear();
    }
    for (const requestId of changes.released) {
      for (const block of this.tables.get(requestId) ?? []) {
        const owners = this.owners.get(block);
        owners.delete(requestId);
        if (!owners.size) this.owners.delete(block);
      }
      this.tables.delete(requestId);
    }
    for (const [requestId, blocks] of Object.entries(changes.tables)) {
      if (!this.tables.has(requestId)) this.tables.set(requestId, []);
      this.tables.get(requestId).push(...blocks);
      for (const block of blocks) {
        if (!this.owners.has(block)) this.owners.set(block, new Set());
        this.owners.get(block).add(requestId);
        this.highest = Math.max(this.highest, block);
      }
    }
    for (const block of changes.cached) {
      this.cached.add(block);
      this.highest = Math.max(this.highest, block);
    }
    for (const block of changes.uncached) this.cached.delete(block);
  }

  takeStep(step, now) {
    if (step.batch.length) this.steps.push(step);
    this.generated.push([now, step.num_output_tokens]);
    for (const share of step.batch) {
      this.requests.set(share.request_id, share);
      if (share.num_cached) this.note(share.request_id, `${share.num_cached} of ${share.total} were cached`);
    }
    for (const requestId of step.preempted) this.note(requestId, "preempted: waits again");
    for (const { request_id: requestId, reason } of step.finished) {
      this.numFinished += 1;
      this.note(requestId, { stop: "finished", length: "finished (length)", abort: "aborted" }[reason] ?? reason);
    }
  }

  note(requestId, text) {
    this.notes.unshift({ requestId, text });
    this.notes.length = Math.min(this.notes.length, MAX_NOTES);
  }

  // Tokens generated per second, over the last few seconds.
  rate(now = performance.now()) {
    while (this.generated.length && this.generated[0][0] < now - RATE_WINDOW) this.generated.shift();
    const numTokens = this.generated.reduce((sum, [, tokens]) => sum + tokens, 0);
    return numTokens / (RATE_WINDOW / 1000);
  }

  // "empty", "kept", "owned" or "shared", and whose.
  block(index) {
    const owners = this.owners.get(index);
    if (owners) return { kind: owners.size > 1 ? "shared" : "owned", owners: [...owners], isCached: this.cached.has(index) };
    return { kind: this.cached.has(index) ? "kept" : "empty", owners: [], isCached: this.cached.has(index) };
  }
}
