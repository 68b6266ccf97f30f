// Talking to the server: the key, JSON, server-sent events, and errors in its own words.

const KEY = "lightvllm-api-key";

export function apiKey() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function setApiKey(key) {
  sessionStorage.setItem(KEY, key.trim());
}

export class ApiError extends Error {
  constructor(message, status, param) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (apiKey()) headers.Authorization = `Bearer ${apiKey()}`;
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  let error = null;
  try {
    error = (await response.json()).error;
  } catch {
    // Not one of the server's own answers, perhaps a proxy's.
  }
  throw new ApiError(error?.message ?? `${response.status} ${response.statusText}`, response.status, error?.param);
}

export async function getJson(path) {
  return (await request(path)).json();
}

function post(path, body, signal) {
  return request(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
}

export async function postJson(path, body, signal) {
  return (await post(path, body, signal)).json();
}

// The chunks of a streamed answer, until [DONE].
export async function* postStream(path, body, signal) {
  yield* jsonEvents(await post(path, body, signal));
}

export async function* getStream(path, signal) {
  yield* jsonEvents(await request(path, { signal }));
}

async function* jsonEvents(response) {
  for await (const data of eventData(response.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(event.error.message, event.error.code, event.error.param);
    yield event;
  }
}

// The data of server-sent events. EventSource would do, but sends neither a key nor a body.
export async function* eventData(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      buffer += value;
      const events = buffer.split(/\r?\n\r?\n/);
      buffer = events.pop();
      for (const event of events) {
        const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}
