// The document of the server's APIs, to read and to try: nothing comes from elsewhere.
"use strict";

const $ = (id) => document.getElementById(id);
const JSON_TYPE = "application/json";
let spec;

// An element with attributes and children. Texts are never taken for markup.
function make(name, attributes, ...children) {
  const found = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
  found.append(...children);
  return found;
}

function resolved(schema) {
  const path = schema?.$ref?.slice(2).split("/");
  return path ? path.reduce((value, key) => value[key], spec) : schema ?? {};
}

function typeName(given) {
  const schema = resolved(given);
  const name = given?.$ref?.split("/").pop();
  if (name) return name;
  const some = schema.oneOf ?? schema.anyOf;
  if (some) return [...new Set(some.map(typeName))].join(" or ");
  if (schema.enum) {
    const shown = schema.enum.slice(0, 4).map((value) => JSON.stringify(value)).join(", ");
    return schema.enum.length > 4 ? "string" : shown;
  }
  const types = [schema.type ?? "any"].flat();
  return types.map((type) => type === "array" ? `list of ${typeName(schema.items)}` : type).join(" or ");
}

function range(schema) {
  const { minimum: low, maximum: high } = schema;
  return low === undefined ? "" : ` ${low} to ${high ?? "any"}`;
}

function fields(schema) {
  const rows = Object.entries(resolved(schema).properties ?? {}).map(([name, given]) => {
    const needed = resolved(schema).required?.includes(name);
    return make("tr", {},
      make("th", { scope: "row" }, name + (needed ? " *" : "")),
      make("td", {}, typeName(given) + range(resolved(given))),
      make("td", {}, resolved(given).description ?? ""));
  });
  return rows.length ? make("div", { class: "wide" }, make("table", {}, ...rows)) : "";
}

const EXAMPLES = {
  text: "Open the file.", source_lang: "en", target_lang: "de", target: "Öffnen Sie die Datei.",
  q: "Open the file.", source: "en",
};

// Where an API has other words.
const OTHERS = {
  "/translate": { target: "de" },
  "/v2/translate": { text: [EXAMPLES.text], target_lang: "DE" },
};

// A request that works with what the server has.
function example(path, schema) {
  const found = {};
  for (const name of resolved(schema).required ?? []) found[name] = EXAMPLES[name] ?? "";
  Object.assign(found, OTHERS[path]);
  return JSON.stringify(found, null, 2);
}

function tryIt(method, path, body) {
  const id = `body-${method}-${path.replaceAll("/", "-")}`;
  const area = body && make("textarea", { id, rows: 6, spellcheck: "false" });
  const output = make("pre", { class: "pane", tabindex: "0", "aria-live": "polite", hidden: "" });
  const button = make("button", { type: "button" }, `Send ${method.toUpperCase()} ${path}`);
  if (area) area.value = example(path, body);
  button.addEventListener("click", async () => {
    output.hidden = false;
    output.textContent = "…";
    const headers = {};
    if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
    if (area) headers["Content-Type"] = JSON_TYPE;
    try {
      const answer = await fetch(path, { method: method.toUpperCase(), headers, body: area?.value });
      let text = await answer.text();
      try { text = JSON.stringify(JSON.parse(text), null, 2); } catch { /* It is no JSON. */ }
      output.textContent = `${answer.status}\n${text}`;
    } catch (error) {
      output.textContent = String(error);
    }
  });
  const label = area && make("label", { for: id }, "Body");
  return [label, area, button, output].filter(Boolean);
}

function operation(method, path, found) {
  const content = found.requestBody?.content ?? {};
  const kinds = Object.keys(content);
  const body = content[JSON_TYPE]?.schema;
  const answers = Object.values(found.responses["200"]?.content ?? {})[0]?.schema;
  const tries = path.includes("{") || (kinds.length && !body) ? [] : tryIt(method, path, body);
  return make("details", { id: found.operationId },
    make("summary", {}, make("code", {}, `${method.toUpperCase()} ${path}`), ` ${found.summary}`),
    ...(kinds.length ? [make("h3", {}, `Request (${kinds.join(", ")})`)] : []),
    kinds.length ? fields(content[kinds[0]].schema) : "",
    ...(answers ? [make("h3", {}, "Answer"), fields(answers)] : []),
    ...tries);
}

async function begin() {
  const answer = await fetch("openapi.json");
  if (!answer.ok) throw new Error(`The server answered ${answer.status}.`);
  spec = await answer.json();
  for (const [path, methods] of Object.entries(spec.paths)) {
    for (const [method, found] of Object.entries(methods)) {
      $("operations").append(operation(method, path, found));
    }
  }
  document.documentElement.dataset.ready = "yes";
}

begin().catch((error) => { $("error").textContent = error.message; });
