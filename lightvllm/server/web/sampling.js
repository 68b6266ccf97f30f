// The sampling sliders. What nobody moved is not sent: the server's default, which may be the model's own, holds.

import { byId, element } from "./dom.js";

const SLIDERS = [
  { name: "temperature", min: 0, max: 2, step: 0.05, start: 1, help: "0 always takes the likeliest token" },
  { name: "top_p", min: 0.05, max: 1, step: 0.05, start: 1, help: "only the likeliest tokens that make up this share" },
  { name: "top_k", min: 0, max: 100, step: 1, start: 0, help: "only so many of the likeliest tokens; 0: all" },
  { name: "min_p", min: 0, max: 0.5, step: 0.01, start: 0, help: "only tokens this likely, measured by the likeliest" },
  { name: "repetition_penalty", min: 0.5, max: 2, step: 0.05, start: 1, help: "above 1: less of what was there before" },
  { name: "max_tokens", min: 1, max: 1024, step: 1, start: 128, help: "the longest answer" },
];

const moved = new Map();

export function buildSliders() {
  const box = byId("sliders");
  for (const { name, help, start, ...range } of SLIDERS) {
    const input = element("input", { type: "range", id: `slider-${name}`, title: help, ...range });
    const output = element("output", { for: input.id, text: "default" });
    input.value = start;
    input.addEventListener("input", () => {
      moved.set(name, input.valueAsNumber);
      output.textContent = input.value;
    });
    box.append(element("label", { for: input.id, title: help, text: name }), input, output);
  }
  const seed = element("input", { type: "number", id: "seed", min: 0, step: 1, placeholder: "default" });
  seed.addEventListener("input", () => (Number.isNaN(seed.valueAsNumber) ? moved.delete("seed") : moved.set("seed", seed.valueAsNumber)));
  box.append(element("label", { for: "seed", text: "seed", title: "the same seed, the same answer" }), seed, element("span"));
  byId("defaults").addEventListener("click", reset);
}

function reset() {
  moved.clear();
  for (const { name, start } of SLIDERS) {
    byId(`slider-${name}`).value = start;
    byId(`slider-${name}`).nextElementSibling.textContent = "default";
  }
  byId("seed").value = "";
}

// The request's fields.
export function samplingFields() {
  return Object.fromEntries(moved);
}
