// The two pictures: the last steps as bars, and the cache blocks as a map.

import { requestColor } from "./colors.js";
import { cssColor, prepareCanvas } from "./dom.js";

const BAR = 11;
const GAP = 3;
const STEPS_HEIGHT = 170;
const MAX_SHOWN_BLOCKS = 8192;
const LEAST_SHOWN_BLOCKS = 256;

// A prompt's piece can have a thousand times the tokens of a decode: heights grow with the logarithm.
function segmentHeight(numTokens) {
  return 5 + 4 * Math.log2(numTokens);
}

let hatch = null;

function hatching(context) {
  if (hatch) return hatch;
  const tile = document.createElement("canvas");
  tile.width = tile.height = 6;
  const pen = tile.getContext("2d");
  pen.strokeStyle = "rgb(255 255 255 / 75%)";
  pen.lineWidth = 1.6;
  for (const shift of [-6, 0, 6]) {
    pen.moveTo(shift - 1, 7);
    pen.lineTo(shift + 7, -1);
  }
  pen.stroke();
  hatch = context.createPattern(tile, "repeat");
  return hatch;
}

export function drawSteps(canvas, steps) {
  const [context, width] = prepareCanvas(canvas, STEPS_HEIGHT);
  const shown = steps.slice(-Math.floor(width / (BAR + GAP)));
  const heights = shown.map((step) => step.batch.reduce((sum, share) => sum + segmentHeight(share.num_tokens) + 1, 0));
  const scale = Math.min(2, (STEPS_HEIGHT - 16) / Math.max(1, ...heights));
  context.font = "9px system-ui, sans-serif";
  context.textAlign = "center";
  shown.forEach((step, index) => {
    const x = width - (shown.length - index) * (BAR + GAP);
    let y = STEPS_HEIGHT - 1;
    for (const share of step.batch) {
      const height = segmentHeight(share.num_tokens) * scale;
      y -= height + scale;
      context.fillStyle = requestColor(share.request_id);
      context.fillRect(x, y, BAR, height);
      if (share.kind === "prefill") {
        context.fillStyle = hatching(context);
        context.fillRect(x, y, BAR, height);
      }
    }
    if (step.preempted.length) {
      context.fillStyle = cssColor("--bad");
      context.fillText("!", x + BAR / 2, y - 3);
    }
  });
  const last = shown.at(-1);
  canvas.setAttribute("aria-label", last ? describeStep(last) : "No step so far");
  return last;
}

export function describeStep(step) {
  const prefill = step.batch.filter((share) => share.kind === "prefill");
  const numPrefill = prefill.reduce((sum, share) => sum + share.num_tokens, 0);
  const numDecodes = step.batch.length - prefill.length;
  const parts = [];
  if (prefill.length) parts.push(`${numPrefill} prompt tokens of ${prefill.length}`);
  if (numDecodes) parts.push(`the next token of ${numDecodes}`);
  return `Step ${step.step}, ${(1000 * step.seconds).toFixed(1)} ms: ${parts.join(" and ")}`;
}

// How the blocks are laid out: as many as were used so far, or all of a small cache.
function layout(state, width) {
  const total = state.stats?.num_blocks ?? 0;
  let shown = LEAST_SHOWN_BLOCKS;
  while (shown <= state.highest) shown *= 2;
  shown = Math.min(shown, total, MAX_SHOWN_BLOCKS);
  const size = Math.max(4, Math.min(16, Math.floor(Math.sqrt((width * 150) / Math.max(1, shown)))));
  const columns = Math.max(1, Math.floor(width / size));
  return { total, shown, size, columns, height: Math.max(40, Math.ceil(shown / columns) * size) };
}

// Returns how many are shown.
export function drawBlocks(canvas, state) {
  const { total, shown, size, columns, height } = layout(state, canvas.clientWidth);
  const [context] = prepareCanvas(canvas, height);
  const [empty, kept, mark] = ["--empty", "--kept", "--mark"].map(cssColor);
  const inner = size - (size > 6 ? 2 : 1);
  const count = { owned: 0, shared: 0, kept: 0, empty: 0 }; // of those shown
  for (let index = 0; index < shown; index += 1) {
    const { kind, owners } = state.block(index);
    const [x, y] = [(index % columns) * size, Math.floor(index / columns) * size];
    count[kind] += 1;
    if (kind === "empty") {
      context.strokeStyle = empty;
      context.lineWidth = 1;
      context.strokeRect(x + 0.5, y + 0.5, inner - 1, inner - 1);
      continue;
    }
    context.fillStyle = kind === "kept" ? kept : requestColor(owners[0]);
    context.fillRect(x, y, inner, inner);
    if (kind === "shared") {
      context.fillStyle = mark;
      context.beginPath();
      context.arc(x + inner / 2, y + inner / 2, inner / 4, 0, 2 * Math.PI);
      context.fill();
    }
  }
  const inUse = `${state.owners.size} of ${total} blocks in use, ${count.shared} of them shared`;
  canvas.setAttribute("aria-label", `${inUse}; ${count.kept} kept for later`);
  return shown;
}

// The block under the pointer; null outside.
export function blockAt(canvas, state, event) {
  const { shown, size, columns } = layout(state, canvas.clientWidth);
  const [column, row] = [Math.floor(event.offsetX / size), Math.floor(event.offsetY / size)];
  const index = row * columns + column;
  return column < columns && index < shown ? index : null;
}
