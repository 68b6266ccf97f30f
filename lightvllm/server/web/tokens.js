// The token view: each token on a colour that says how sure the model was, its alternatives on a touch.

import { byId, element } from "./dom.js";

// [least probability, class]
const LEVELS = [
  [0.9, "p4"],
  [0.5, "p3"],
  [0.15, "p2"],
  [0, "p1"],
];

function percent(logprob) {
  const probability = 100 * Math.exp(logprob);
  if (probability < 0.01) return "< 0.01 %";
  return probability >= 9.95 ? `${probability.toFixed(0)} %` : `${probability.toPrecision(2)} %`;
}

function visible(token) {
  return token === "" ? "∅" : token.replaceAll("\n", "⏎\n").replaceAll("\t", "⇥");
}

// Chat and completions say the same in two forms; here is one: {token, logprob, top: [{token, logprob}]}.
export function readLogprobs(choice) {
  const given = choice.logprobs;
  if (!given) return [];
  if (given.content) {
    return given.content.map(({ token, logprob, top_logprobs }) => ({ token, logprob, top: top_logprobs ?? [] }));
  }
  return (given.tokens ?? []).map((token, index) => ({
    token,
    logprob: given.token_logprobs[index] ?? 0,
    top: Object.entries(given.top_logprobs?.[index] ?? {}).map(([token, logprob]) => ({ token, logprob })),
  }));
}

export class TokenView {
  constructor() {
    this.node = element("p", { className: "tokens", role: "group", "aria-label": "Tokens and their probabilities" });
    this.node.addEventListener("keydown", (event) => this.walk(event));
    this.node.addEventListener("focusout", hideAlternatives);
    this.node.addEventListener("mouseleave", hideAlternatives);
  }

  add({ token, logprob, top }) {
    const level = LEVELS.find(([least]) => Math.exp(logprob) >= least)[1];
    const span = element("span", {
      className: `token ${level}`,
      text: visible(token),
      // One stop for the tab key; the arrow keys go on from there.
      tabindex: this.node.childElementCount ? "-1" : "0",
      "aria-label": `${visible(token)} ${percent(logprob)}`,
      role: "button",
    });
    const show = () => showAlternatives(span, token, logprob, top);
    span.addEventListener("mouseenter", show);
    span.addEventListener("focus", show);
    span.addEventListener("click", show);
    this.node.append(span);
  }

  walk(event) {
    const here = document.activeElement;
    const next = { ArrowRight: here.nextElementSibling, ArrowLeft: here.previousElementSibling }[event.key];
    if (event.key === "Escape") hideAlternatives();
    if (!next) return;
    event.preventDefault();
    here.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}

function showAlternatives(span, token, logprob, top) {
  const box = byId("alternatives");
  const rows = [...top].sort((a, b) => b.logprob - a.logprob);
  if (!rows.some((row) => row.token === token)) rows.push({ token, logprob });
  const list = element("ul");
  for (const row of rows) {
    const bar = element("span", { className: "bar" });
    bar.style.width = `${Math.max(1, 60 * Math.exp(row.logprob))}px`;
    const name = element("code", { text: JSON.stringify(row.token).slice(1, -1) || "∅" });
    const item = element("li", {}, name, bar, element("span", { text: percent(row.logprob) }));
    if (row.token === token) item.className = "chosen";
    list.append(item);
  }
  box.replaceChildren(list);
  box.hidden = false;
  const place = span.getBoundingClientRect();
  const left = Math.min(place.left, document.documentElement.clientWidth - box.offsetWidth - 8);
  box.style.left = `${Math.max(8, left) + window.scrollX}px`;
  box.style.top = `${place.bottom + 4 + window.scrollY}px`;
}

function hideAlternatives() {
  byId("alternatives").hidden = true;
}
