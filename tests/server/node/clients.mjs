// Clients from npm against a server: clients.mjs URL EXPECTED, the German of "Open the file."
import assert from "node:assert/strict";
import * as deepl from "deepl-node";
import libretranslate from "libretranslate";

const [url, expected] = process.argv.slice(2);
const text = "Open the file.";

assert.equal(
  await libretranslate.translate({ query: text, source: "en", target: "de", apiurl: url }), expected);
const found = await libretranslate.translate({ query: text, target: "de", apiurl: url });
assert.equal(found, expected); // The source is detected.

const client = new deepl.Translator("key", { serverUrl: url });
const one = await client.translateText(text, "en", "de");
assert.deepEqual([one.text, one.detectedSourceLang, one.billedCharacters], [expected, "en", text.length]);
const several = await client.translateText([text, text], null, "de");
assert.deepEqual(several.map((each) => each.text), [expected, expected]);
assert.ok((await client.getTargetLanguages()).some((each) => each.code === "en-US"));
assert.equal((await client.getUsage()).anyLimitReached(), false);
await assert.rejects(client.translateText(text, "en", "ja"), /JA is not supported|ja is not supported/);

const answer = await fetch(`${url}/v1/translations`, {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify({ text, source_lang: "en", target_lang: "de", stream: true }),
});
assert.ok((await answer.text()).endsWith(`event: done\ndata: ${ascii({ text: expected })}\n\n`));

function ascii(value) {
  return JSON.stringify(value).replace(/":/g, '": ')
    .replace(/[^\x00-\x7f]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}
console.log("npm's clients work");
