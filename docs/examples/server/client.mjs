const answer = await fetch("http://127.0.0.1:5000/v1/translations", {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify({
    text: "Open the file. The file could not be found.",
    source_lang: "en",
    target_lang: "de",
    split: true,
  }),
});
if (!answer.ok) throw new Error((await answer.json()).error.message);
const { translations } = await answer.json();
console.log(translations[0].text);
