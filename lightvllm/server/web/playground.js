// The playground: one answer at a time, streamed, with its tokens and its figures.

import { postStream } from "./api.js";
import { demoRows } from "./demo.js";
import { byId, element } from "./dom.js";
import { requestColor } from "./colors.js";
import { samplingFields } from "./sampling.js";
import { TokenView, readLogprobs } from "./tokens.js";

const NUM_ALTERNATIVES = 5;
const COMPLETION_TOKENS = 128; // the API's own default, 16, is short for a playground

let history = []; // messages of this conversation, without the system's
let running = null; // the AbortController of the answer under way

export function initPlayground() {
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && mode() === "chat") {
      event.preventDefault();
      send();
    }
  });
  byId("stop").addEventListener("click", () => running?.abort());
  byId("clear").addEventListener("click", clear);
  for (const input of document.querySelectorAll("input[name=mode]")) input.addEventListener("change", showMode);
}

function mode() {
  return document.querySelector("input[name=mode]:checked").value;
}

function showMode() {
  const isChat = mode() === "chat";
  byId("prompt-label").textContent = isChat ? "Message" : "Text to go on with";
  byId("system-box").hidden = !isChat;
  byId("history-label").hidden = !isChat;
}

function clear() {
  running?.abort();
  history = [];
  byId("conversation").replaceChildren();
  byId("token-legend").hidden = true;
}

function readSchema() {
  const text = byId("schema").value.trim();
  if (!text) return null;
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`The schema is not JSON: ${error.message}`);
  }
}

// The request's path and body.
function compose(prompt) {
  const schema = readSchema();
  const body = {
    model: byId("model").value,
    stream: true,
    stream_options: { include_usage: true },
    ...samplingFields(),
  };
  if (schema) body.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  const withTokens = byId("show-tokens").checked;
  if (mode() === "completion") {
    if (withTokens) body.logprobs = NUM_ALTERNATIVES;
    return ["v1/completions", { max_tokens: COMPLETION_TOKENS, ...body, prompt }];
  }
  if (withTokens) Object.assign(body, { logprobs: true, top_logprobs: NUM_ALTERNATIVES });
  const system = byId("system").value.trim();
  const messages = system ? [{ role: "system", content: system }] : [];
  if (byId("history").checked) messages.push(...history);
  messages.push({ role: "user", content: prompt });
  return ["v1/chat/completions", { ...body, messages }];
}

async function send() {
  const prompt = byId("prompt").value;
  if (running || !prompt.trim()) return;
  const answer = new Answer(prompt);
  running = new AbortController();
  setBusy(true);
  try {
    const isChat = mode() === "chat";
    const [path, body] = compose(prompt);
    for await (const chunk of postStream(path, body, running.signal)) answer.take(chunk);
    answer.end();
    if (isChat) {
      history.push({ role: "user", content: prompt }, { role: "assistant", content: answer.text });
      byId("prompt").value = "";
    }
    if (isChat && !body.response_format) await answer.showRows();
  } catch (error) {
    if (error.name === "AbortError") answer.end("stopped");
    else answer.fail(error);
  } finally {
    running = null;
    setBusy(false);
  }
}

function setBusy(isBusy) {
  byId("send").disabled = isBusy;
  byId("stop").disabled = !isBusy;
  byId("conversation").setAttribute("aria-busy", String(isBusy));
}

// A question and its answer, as they stand in the conversation.
class Answer {
  constructor(prompt) {
    this.text = "";
    this.reasoning = "";
    this.sent = performance.now();
    this.firstToken = null;
    this.lastToken = null;
    this.numTokens = 0;
    this.usage = null;
    this.finishReason = null;
    this.tokens = null;

    this.dot = element("i", { className: "swatch request", "aria-hidden": "true" });
    this.thoughts = element("p", { className: "reasoning" });
    this.body = element("p", { className: "text" });
    this.figures = element("p", { className: "hint answer-figures" });
    this.article = element(
      "article",
      {},
      element("p", { className: "question", text: prompt }),
      element("div", { className: "answer" }, this.dot, this.thoughts, this.body),
      this.figures,
    );
    this.thoughts.hidden = this.dot.hidden = true;
    byId("conversation").prepend(this.article);
  }

  take(chunk) {
    if (chunk.id && this.dot.hidden) {
      this.dot.hidden = false;
      this.dot.style.background = requestColor(chunk.id); // the engine's half shows it in the same colour
      this.dot.title = chunk.id;
    }
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    const text = choice.delta?.content ?? choice.text ?? "";
    const reasoning = choice.delta?.reasoning ?? "";
    const tokens = readLogprobs(choice);
    if (text || reasoning || tokens.length) {
      this.lastToken = performance.now();
      this.firstToken ??= this.lastToken;
      this.numTokens += tokens.length || 1;
    }
    this.text += text;
    this.reasoning += reasoning;
    this.finishReason = choice.finish_reason ?? this.finishReason;
    this.show(tokens);
  }

  show(tokens) {
    if (tokens.length && !this.tokens) {
      this.tokens = new TokenView();
      this.body.after(this.tokens.node);
      this.body.classList.add("hidden"); // the tokens say the same; who listens hears the text once
      byId("token-legend").hidden = false;
    }
    for (const token of tokens) this.tokens.add(token);
    this.body.textContent = this.text;
    this.thoughts.textContent = this.reasoning;
    this.thoughts.hidden = !this.reasoning;
    this.figures.textContent = this.describe();
  }

  describe() {
    const parts = [];
    if (this.firstToken !== null) {
      parts.push(`first token after ${Math.round(this.firstToken - this.sent)} ms`);
      const numTokens = this.usage?.completion_tokens ?? this.numTokens;
      const seconds = (this.lastToken - this.firstToken) / 1000;
      if (numTokens > 1 && seconds > 0) parts.push(`${((numTokens - 1) / seconds).toFixed(0)} tokens/s`);
    }
    if (this.usage) {
      const cached = this.usage.prompt_tokens_details?.cached_tokens;
      const saved = cached ? ` (${cached} from the prefix cache)` : "";
      parts.push(`${this.usage.prompt_tokens} prompt${saved} + ${this.usage.completion_tokens} answer tokens`);
    }
    if (this.finishReason) parts.push({ stop: "ended by itself", length: "cut by its length" }[this.finishReason] ?? this.finishReason);
    return parts.join(" · ");
  }

  end(reason = null) {
    this.finishReason = reason ?? this.finishReason;
    this.show([]);
  }

  fail(error) {
    this.end("failed");
    const where = error.param ? ` (${error.param})` : "";
    this.article.append(element("p", { className: "error", role: "alert", text: `${error.message}${where}` }));
  }

  async showRows() {
    const rows = await demoRows(this.text);
    if (rows) this.article.append(rows);
  }
}
