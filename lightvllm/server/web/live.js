// The engine, live: follows /debug/engine and shows what it says, at its own pace, slowly, or not at all for a while.

import { getStream, postJson } from "./api.js";
import { requestColor, shortId } from "./colors.js";
import { demoMessages } from "./demo.js";
import { byId, element } from "./dom.js";
import { blockAt, describeStep, drawBlocks, drawSteps } from "./drawing.js";
import { EngineState } from "./engine_state.js";

const SLOW_INTERVAL = 250; // ms between two events in slow motion
const MAX_HELD_BACK = 2000; // events; more than anybody waits for
// What is listed has a fixed place: what is below must not move.
const MAX_RUNNING = 12;
const MAX_WAITING = 4;
const RETRY_AFTER = 2000;
const NUM_LOAD_PROMPTS = 4;
const LOAD_INTERVAL = 100; // ms

const state = new EngineState();
let speed = "live";
let heldBack = [];
let connection = null;
let query = ""; // of the connection
let isDrawPending = false;

export function initLive() {
  for (const name of ["live", "slow", "pause"]) byId(`speed-${name}`).addEventListener("click", () => setSpeed(name));
  byId("load").addEventListener("click", sendLoad);
  byId("blocks").addEventListener("mousemove", (event) => showBlock(blockAt(byId("blocks"), state, event)));
  byId("blocks").addEventListener("mouseleave", () => showBlock(null));
  window.addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  setInterval(playSlowly, SLOW_INTERVAL);
  setInterval(showFigures, 500); // the rate falls, too, when nothing comes
  draw();
}

// (Re)connect: at the start, and when the key or the pace changes.
export async function connect() {
  connection?.abort();
  const here = (connection = new AbortController());
  heldBack = [];
  while (!here.signal.aborted) {
    try {
      showStatus("watching");
      for await (const event of getStream(`debug/engine${query}`, here.signal)) take(event);
      showStatus("the engine went away; trying again");
    } catch (error) {
      if (here.signal.aborted) return;
      if (error.status === 404) return showStatus("This server does not show its engine.");
      showStatus(error.status ? error.message : "no connection; trying again");
      if (error.status === 401) return;
    }
    await new Promise((done) => setTimeout(done, RETRY_AFTER));
  }
}

function showStatus(text) {
  byId("live-status").textContent = text;
}

function setSpeed(name) {
  speed = name;
  for (const other of ["live", "slow", "pause"]) byId(`speed-${other}`).setAttribute("aria-pressed", String(other === name));
  if (name === "pause") return;
  // In slow motion each step is shown: none may be merged with another.
  const wanted = name === "slow" ? "?interval=0" : "";
  if (wanted !== query) {
    query = wanted;
    connect();
  } else if (name === "live") {
    for (const event of heldBack.splice(0)) apply(event);
  }
}

function take(event) {
  if (speed === "live") return apply(event);
  heldBack.push(event);
  if (heldBack.length > MAX_HELD_BACK) apply(heldBack.shift());
}

function playSlowly() {
  // A browser that is behind gets the next step when it has drawn the last.
  if (speed === "slow" && heldBack.length && !isDrawPending) apply(heldBack.shift());
}

function apply(event) {
  state.take(event);
  draw();
}

function draw() {
  if (isDrawPending) return;
  isDrawPending = true;
  // As often as the screen shows it. A page in the background is not drawn at all.
  requestAnimationFrame(() => {
    isDrawPending = false;
    const step = drawSteps(byId("steps"), state.steps);
    byId("steps-scale").textContent = step ? describeStep(step) : "height: the logarithm of its tokens";
    const numShown = drawBlocks(byId("blocks"), state);
    const numBlocks = state.stats?.num_blocks ?? 0;
    byId("blocks-scale").textContent = numShown < numBlocks ? `the first ${numShown} of ${numBlocks} blocks` : `all ${numBlocks} blocks`;
    if (state.config) byId("block-size").textContent = String(state.config.block_size);
    showQueues();
    showFigures();
  });
}

function chip(requestId, text) {
  const swatch = element("i", { className: "swatch request", "aria-hidden": "true" });
  swatch.style.background = requestColor(requestId);
  return element("li", { title: requestId }, swatch, element("code", { text: shortId(requestId) }), ` ${text}`);
}

function more(count) {
  return count > 0 ? [element("li", { text: `and ${count} more` })] : [];
}

function showQueues() {
  const running = [...state.requests.values()];
  byId("num-running").textContent = String(state.stats?.num_running ?? 0);
  byId("num-waiting").textContent = String(state.stats?.num_waiting ?? 0);
  const lines = running.slice(0, MAX_RUNNING).map((share) => {
    const done = share.start + share.num_tokens;
    const isPrefill = share.kind === "prefill";
    return chip(share.request_id, isPrefill ? `prefill ${done} of ${share.total}` : `decode ${share.total}`);
  });
  byId("running").replaceChildren(...lines, ...more(running.length - MAX_RUNNING));
  const waiting = state.waiting.slice(0, MAX_WAITING).map((request) => {
    return chip(request.request_id, `${request.num_tokens}${request.is_preempted ? ", preempted" : " tokens"}`);
  });
  byId("waiting").replaceChildren(...waiting, ...more((state.stats?.num_waiting ?? 0) - waiting.length));
  byId("events").replaceChildren(...state.notes.map(({ requestId, text }) => chip(requestId, text)));
}

function showFigures() {
  const { stats } = state;
  if (!stats) return;
  const hits = stats.prefix_cache_hits;
  const share = stats.prefix_cache_queries ? Math.round((100 * hits) / stats.prefix_cache_queries) : 0;
  const usage = Math.round((100 * stats.num_used_blocks) / stats.num_blocks);
  const figures = {
    "tokens/s": speed === "live" ? state.rate().toFixed(0) : "–",
    "blocks in use": `${stats.num_used_blocks} of ${stats.num_blocks} (${usage} %)`,
    "prompt tokens found in the prefix cache": `${hits} of ${stats.prefix_cache_queries} (${share} %)`,
    preemptions: String(stats.num_preemptions),
  };
  byId("figures").replaceChildren(
    ...Object.entries(figures).map(([name, value]) => element("div", {}, element("dt", { text: name }), element("dd", { text: value }))),
  );
}

function showBlock(index) {
  if (index === null) {
    byId("block-text").textContent = "Point at a block to see whose it is.";
    return;
  }
  const { kind, owners, isCached } = state.block(index);
  const whose = owners.map(shortId).join(", ");
  const words = { empty: "empty", kept: "kept for a request that begins with the same tokens", owned: `of ${whose}`, shared: `shared by ${whose}` }[kind];
  byId("block-text").textContent = `Block ${index}: ${words}${owners.length && isCached ? "; the prefix cache knows it" : ""}`;
}

// Something to see: prompts that begin alike, one shortly after the other, with two answers each, as a browser keeps no
// more than six connections to a server. The answers are not shown, and go on for as long as they may: short ones would
// be over before the next request comes.
async function sendLoad() {
  byId("load").disabled = true;
  const model = byId("model").value;
  const examples = demoMessages();
  const jobs = Array.from({ length: NUM_LOAD_PROMPTS }, async (_, number) => {
    await new Promise((done) => setTimeout(done, LOAD_INTERVAL * number));
    const limits = { model, n: 2, max_tokens: 80 + 32 * number, ignore_eos: true, temperature: 1 };
    if (examples) return postJson("v1/chat/completions", { ...limits, messages: examples[number % examples.length] });
    const prompt = `${"A story that all of them know, told again and again. ".repeat(8)}Chapter ${number + 1}:`;
    return postJson("v1/completions", { ...limits, prompt });
  });
  const results = await Promise.allSettled(jobs);
  const failed = results.find((result) => result.status === "rejected");
  if (failed) showStatus(failed.reason.message);
  byId("load").disabled = false;
}
