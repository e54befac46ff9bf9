// The page of the server: it uses the server's own API, and nothing from elsewhere.
"use strict";

const $ = (id) => document.getElementById(id);
const WAIT = 400; // Milliseconds without a key before a translation begins.
const SHORT = 400; // Characters up to which alternatives are offered.
let timer, running = null, limit = Infinity, detected = null;

function headers() {
  const found = { "Content-Type": "application/json" };
  if ($("key").value) found.Authorization = `Bearer ${$("key").value}`;
  return found;
}

async function ask(path, body, signal) {
  const answer = await fetch(path, body
    ? { method: "POST", headers: headers(), body: JSON.stringify(body), signal }
    : { headers: headers(), signal });
  if (!answer.ok) {
    let message = `The server answered ${answer.status}.`;
    try { message = (await answer.json()).error.message; } catch { /* It is no JSON. */ }
    throw new Error(message);
  }
  return answer;
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const lines = text.slice(0, end).split("\n");
      text = text.slice(end + 2);
      const name = lines.find((line) => line.startsWith("event: "))?.slice(7) ?? "";
      yield [name, JSON.parse(lines.find((line) => line.startsWith("data: ")).slice(6))];
    }
  }
}

function show(text, status = "") {
  $("translation").textContent = text;
  $("status").textContent = status;
  $("copy").disabled = !text;
}

function fail(error) {
  if (error.name === "AbortError") return;
  $("error").textContent = error.message;
  $("status").textContent = "";
}

async function source(signal) {
  const code = $("source-lang").value;
  if (code !== "auto") return code;
  const answer = await ask("v1/detections", { text: $("text").value }, signal);
  detected = (await answer.json()).detections[0].language;
  return detected;
}

function job(source_lang) {
  return { text: $("text").value, source_lang, target_lang: $("target-lang").value };
}

async function translate() {
  clearTimeout(timer);
  running?.abort();
  const own = running = new AbortController();
  const text = $("text").value;
  $("error").textContent = "";
  $("alternatives").replaceChildren();
  $("more").disabled = true;
  detected = null;
  $("count").textContent = limit < Infinity ? `${[...text].length} of ${limit} characters` : "";
  if (!text.trim()) { show(""); return; }
  $("translation").classList.add("busy");
  $("status").textContent = "Translating…";
  try {
    const code = await source(own.signal);
    const body = { ...job(code), stream: true, split: true };
    const answer = await ask("v1/translations", body, own.signal);
    let found = "";
    for await (const [name, data] of events(answer)) {
      if (name === "error") throw new Error(data.message);
      found = name === "done" ? data.text : found + data.text;
      show(found, name === "done" ? said(code) : "Translating…");
    }
    $("translation").lang = $("target-lang").value;
    $("more").disabled = text.length > SHORT;
  } catch (error) {
    if (running === own) fail(error);
  } finally {
    if (running === own) $("translation").classList.remove("busy");
  }
}

function said(code) {
  if (!detected) return "Done.";
  const option = [...$("source-lang").options].find((each) => each.value === code);
  return `Detected: ${option ? option.text : code}.`;
}

async function alternatives() {
  $("error").textContent = "";
  try {
    const body = { q: $("text").value, source: detected ?? $("source-lang").value,
      target: $("target-lang").value, alternatives: Number($("more").dataset.count),
      api_key: $("key").value };
    const answer = await fetch("translate",
      { method: "POST", headers: headers(), body: JSON.stringify(body) });
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error);
    const shown = found.alternatives.map((text) => {
      const row = document.createElement("li");
      row.textContent = text;
      row.lang = body.target;
      row.dir = "auto";
      return row;
    });
    if (!shown.length) $("status").textContent = "There are no other translations.";
    $("alternatives").replaceChildren(...shown);
  } catch (error) { fail(error); }
}

function later() {
  clearTimeout(timer);
  running?.abort();
  timer = setTimeout(translate, WAIT);
}

function swap() {
  const [from, to] = [$("source-lang"), $("target-lang")];
  const old = from.value === "auto" ? detected : from.value;
  from.value = to.value;
  if (old) to.value = old;
  else if (from.value === to.value) {
    to.value = [...to.options].find((each) => each.value !== from.value).value;
  }
  const text = $("translation").textContent;
  if (text) $("text").value = text;
  translate();
}

function clear() {
  $("text").value = "";
  translate();
  $("text").focus();
}

async function copy() {
  await navigator.clipboard.writeText($("translation").textContent);
  $("status").textContent = "Copied.";
}

async function start() {
  try {
    const facts = await (await ask("v1/models")).json();
    const { languages } = await (await ask("v1/languages")).json();
    limit = facts.limits.characters;
    $("key-form").hidden = !facts.api_key_required;
    $("more").dataset.count = Math.min(3, facts.limits.alternatives);
    $("more").hidden = facts.limits.alternatives === 0;
    languages.sort((a, b) => a.name.localeCompare(b.name));
    for (const [select, auto] of [[$("source-lang"), facts.detection], [$("target-lang"), false]]) {
      if (auto) select.add(new Option("Detect language", "auto"));
      for (const { code, name } of languages) select.add(new Option(name, code));
    }
    const codes = languages.map((each) => each.code);
    const wish = (navigator.language || "en").split("-")[0];
    const target = codes.includes(wish) && wish !== "en" ? wish : codes.find((code) => code !== "en");
    $("target-lang").value = target ?? codes[0];
    if (!facts.detection && codes.includes("en")) $("source-lang").value = "en";
    document.documentElement.dataset.ready = "yes";
    if ($("text").value) translate();
  } catch (error) { fail(error); }
}

$("text").addEventListener("input", later);
$("source-lang").addEventListener("change", translate);
$("target-lang").addEventListener("change", translate);
$("key").addEventListener("change", translate);
$("key-form").addEventListener("submit", (event) => event.preventDefault());
$("swap").addEventListener("click", swap);
$("clear").addEventListener("click", clear);
$("copy").addEventListener("click", copy);
$("more").addEventListener("click", alternatives);
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); translate(); }
  else if (event.altKey && event.code === "KeyS") { event.preventDefault(); swap(); }
  else if (event.key === "Escape" && document.activeElement === $("text")) clear();
});
start();
