// What the default model can do: questions about the demo database, and the rows that its SQL gives.

import { getJson, postJson } from "./api.js";
import { byId, element } from "./dom.js";

let demo = null; // {schema_prompt, questions}; null where another model is served

export async function loadDemo() {
  try {
    demo = await getJson("demo/schema");
  } catch (error) {
    if (error.status !== 404) throw error;
    demo = null;
  }
  byId("demo").hidden = !demo;
  if (!demo) return;
  const select = byId("question");
  select.replaceChildren(...demo.questions.map((question) => element("option", { text: question })));
  select.onchange = () => (byId("prompt").value = select.value);
  byId("prompt").value ||= demo.questions[0];
  byId("system").value ||= demo.schema_prompt;
  byId("history").checked = false; // it was trained on single questions
}

// The same prompts as the page's examples; null where another model is served.
export function demoMessages() {
  return demo?.questions.map((question) => [
    { role: "system", content: demo.schema_prompt },
    { role: "user", content: question },
  ]);
}

// A table of what the SQL gives; null where there is no demo database, or the model was told of another one.
export async function demoRows(sql) {
  if (!demo || byId("system").value.trim() !== demo.schema_prompt.trim() || !sql.trim()) return null;
  const result = await postJson("demo/sql", { sql });
  if (result.error !== null) return element("p", { className: "error", text: `SQLite says: ${result.error}` });
  const header = element("tr", {}, ...result.columns.map((name) => element("th", { text: name, scope: "col" })));
  const rows = result.rows.map((row) => element("tr", {}, ...row.map(cell)));
  const count = `${result.rows.length}${result.truncated ? " and more" : ""} row${result.rows.length === 1 ? "" : "s"}`;
  const table = element(
    "table",
    { className: "rows" },
    element("caption", { text: `${count} from the demo database` }),
    element("thead", {}, header),
    element("tbody", {}, ...rows),
  );
  return element("div", { className: "scroll", tabindex: "0", role: "region", "aria-label": "Rows of the query" }, table);
}

function cell(value) {
  if (value === null) return element("td", { className: "null", text: "NULL" });
  return element("td", { className: typeof value === "number" ? "number" : "", text: String(value) });
}
