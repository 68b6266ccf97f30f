// The page: wires its parts together.

import { apiKey, getJson, setApiKey } from "./api.js";
import { loadDemo } from "./demo.js";
import { byId, element } from "./dom.js";
import { connect, initLive } from "./live.js";
import { initPlayground } from "./playground.js";
import { buildSliders } from "./sampling.js";

function showError(text) {
  byId("server-error").textContent = text;
  byId("server-error").hidden = !text;
}

// What the server has to say to this key.
async function load() {
  try {
    const models = (await getJson("v1/models")).data;
    byId("model").replaceChildren(...models.map(({ id }) => element("option", { text: id, value: id })));
    await loadDemo();
    showError("");
  } catch (error) {
    showError(error.status === 401 ? "This server asks for an API key." : error.message);
  }
}

buildSliders();
initPlayground();
initLive();
byId("api-key").value = apiKey();
byId("api-key").addEventListener("change", () => {
  setApiKey(byId("api-key").value);
  load();
  connect();
});
load();
connect();
