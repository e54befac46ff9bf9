"""Sentences with tags in them: translated whole, and the tags around the right words again."""

from __future__ import annotations

import html
import random
import re
import shutil
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from m2m100_onnx import Alignment, Translator
from m2m100_onnx.bundle.graphs import CROSS_ATTENTION_FILE
from m2m100_onnx.bundle.manifest import MANIFEST_FILE
from m2m100_onnx.server.inline import is_cut, tagged
from m2m100_onnx.server.markup import Markup
from m2m100_onnx.server.passages import cut, joined
from m2m100_onnx.translation import Hypothesis, Translation
from manifests import edit
from serving import Server, serving

LANGUAGES = {"source_lang": "en", "target_lang": "de"}
NAMES = ("b", "i", "a", "span")
_TAG = re.compile(r"<[^<>]*>")


def tree(document: str) -> tuple[object, ...]:
    """Which element lies in which, in any order; fails if the tags are not well-formed."""
    stack: list[tuple[str, list[object]]] = [("", [])]

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "img":
                stack[-1][1].append(f"img{attrs}")
            else:
                stack.append((f"{tag}{attrs}", []))

        def handle_endtag(self, tag: str) -> None:
            name, inner = stack.pop()
            assert name.startswith(f"{tag}["), (name, tag)
            stack[-1][1].append((name, *sorted(inner, key=repr)))

    reader = Reader()
    reader.feed(document)
    reader.close()
    ((_, found),) = stack
    return tuple(sorted(found, key=repr))


def plain(document: str) -> str:
    return html.unescape(_TAG.sub("", document))


def random_alignment(random_: random.Random, sources: list[str], targets: list[str]) -> Alignment:
    """Of any kind, also one without a pair."""
    rows = []
    for _ in targets:
        row = [random_.random() ** 4 for _ in sources]
        total = sum(row) + random_.random() or 1.0
        rows.append(tuple(value / total for value in row))
    places = random_.sample(range(len(sources)), random_.randint(0, len(sources)))
    others = random_.sample(range(len(targets)), min(len(places), len(targets)))
    return Alignment(
        tuple(sources), tuple(targets), tuple(rows), tuple(zip(places, others, strict=False))
    )


def random_document(random_: random.Random, words: list[str], count: int) -> str:
    """Words with well-formed tags at random places, some in the middle of a word."""
    parts, stack, number = [], [], 0
    for word in random_.choices(words, k=count):
        at = random_.choice([0, 0, 0, len(word) // 2, len(word)])
        parts.append(word[:at])
        for _ in range(random_.choice([0, 0, 1, 2])):
            kind = random_.random()
            if stack and kind < 0.5:
                parts.append(f"</{stack.pop()}>")
            elif kind < 0.85:
                number += 1
                stack.append(random_.choice(NAMES))
                parts.append(f"<{stack[-1]} x='{number}'>")
            else:
                number += 1
                parts.append(f"<img x='{number}'>")
        parts += [word[at:], random_.choice([" ", " ", " ", "", "\n"])]
    return "".join([*parts, *(f"</{name}>" for name in reversed(stack))])


def test_no_tag_is_lost_whatever_the_alignment() -> None:
    random_ = random.Random(11)
    words = ["open", "it", "No.", "a&amp;b", "!", "Yes?", "\u4f60", "\u00a0", "x&lt;", "...", "Ü"]
    aligned = 0
    for _ in range(1500):
        document = random_document(random_, words, random_.randint(0, 14))
        markup = Markup(document)
        filled, texts = [], []
        for run in markup.runs:
            passages = cut(run.text, "en")
            aligned += is_cut(run.elements, passages)
            own = {}
            for place, passage in enumerate(passages):
                if not passage.translated:
                    continue
                # What a tokenizer finds may differ from the text, on both sides.
                sources = [random_.choice([w, w, w.upper()]) for w in passage.text.split()]
                count = random_.randint(0, 6)
                targets = random_.choices(["das", "<Wort>", ".", "&", "ist"], k=count)
                text = random_.choice([" ", ""]).join(targets)
                found = random_alignment(random_, sources, targets)
                hypothesis = Hypothesis(text, 0.0, (), alignment=found)
                own[place] = Translation(text, 0.0, (), (hypothesis,) if text else ())
            target = random_.choice(["de", "zh"])
            filled.append(tagged(run.elements, passages, target, own))
            texts.append(joined(passages, target, {p: t.text for p, t in own.items()}))
            assert html.unescape(_TAG.sub("", filled[-1])) == texts[-1]
        result = markup.filled(filled)
        assert Counter(_TAG.findall(result)) == Counter(_TAG.findall(document)), document
        assert tree(result) == tree(document), (document, result)
    assert aligned > 500


def test_elements_that_go_on_in_another_paragraph() -> None:
    """Their tags stay on their side of the paragraph's."""
    document = "<b>Open <p>the <i>file</i> now.</b> Yes <u>no</p> more</u>"
    markup = Markup(document)
    assert [run.text for run in markup.runs] == ["Open", "the file now. Yes no", "more"]
    filled = []
    for run in markup.runs:
        passages = cut(run.text, "en")
        own = {}
        for place, passage in enumerate(passages):
            if passage.translated:
                words = tuple(passage.text.split())
                pairs = tuple((n, n) for n in range(len(words)))
                rows = tuple(tuple(float(a == b) for a, _ in pairs) for b, _ in pairs)
                alignment = Alignment(words, words, rows, pairs)
                hypothesis = Hypothesis(passage.text, 0.0, (), alignment=alignment)
                own[place] = Translation(passage.text, 0.0, (), (hypothesis,))
        filled.append(tagged(run.elements, passages, "de", own))
    assert markup.filled(filled) == document


def words_in(document: str, name: str) -> str:
    found = re.search(rf"<{name}\b[^<>]*>(.*?)</{name}>", document)
    assert found is not None
    return plain(found[1])


def translate(server: Server, document: str) -> str:
    job = {"q": document, "source": "en", "target": "de", "format": "html"}
    answer = server.post("/translate", job)
    assert answer.status == 200, answer.body
    return str(answer.json["translatedText"])


def test_tags_are_around_the_right_words(server: Server, translator: Translator) -> None:
    document = '<p>Open <b>the file</b> and save <a href="x">a <i>new</i> copy</a>.</p>'
    expected = translator.translate("Open the file and save a new copy.", **LANGUAGES)
    found = translate(server, document)
    assert plain(found) == expected
    assert found.startswith("<p>")
    assert found.endswith("</p>")
    assert (words_in(found, "b"), words_in(found, "a"), words_in(found, "i")) == (
        "die Datei",
        "eine neue Kopie",
        "neue",
    )


def test_words_that_change_places(server: Server, translator: Translator) -> None:
    """German puts the verb last."""
    text = "You do not have permission to open this file."
    document = text.replace("permission", "<b>permission</b>").replace("open", "<i>open</i>")
    found = translate(server, document)
    assert plain(found) == translator.translate(text, **LANGUAGES)
    assert words_in(found, "b").startswith("Berechtigung")
    assert words_in(found, "i") == "öffnen"


def test_a_sentence_over_lines_is_one(server: Server, translator: Translator) -> None:
    found = translate(server, "<p>The file could\n   <b>not be</b>\r\nfound.</p>\n<p>Yes.</p>")
    expected = translator.translate("The file could not be found.", **LANGUAGES)
    assert plain(found.partition("</p>")[0]) == expected
    assert found.count("\n") == 1


def test_real_sentences_keep_their_tags(
    server: Server, translator: Translator, repository: Path
) -> None:
    random_ = random.Random(2)
    lines = (repository / "demo" / "heldout" / "test.en").read_text(encoding="utf-8").splitlines()
    # Sentences alone, which a server that cuts at sentences translates as they are.
    lines = [line for line in lines if sum(p.translated for p in cut(line, "en")) == 1][:40]
    expected = translator.translate(lines, **LANGUAGES)
    documents = []
    for line in lines:
        words, stack, parts = line.split(" "), [], []
        for number, word in enumerate(words):
            if random_.random() < 0.3:
                stack.append(random_.choice(NAMES))
                parts.append(f"<{stack[-1]} x='{number}'>")
            parts.append(html.escape(word, quote=False))
            if stack and random_.random() < 0.4:
                parts.append(f"</{stack.pop()}>")
            parts.append(" " if number < len(words) - 1 else "")
        documents.append("".join([*parts, *(f"</{name}>" for name in reversed(stack))]))
    for document, text in zip(documents, expected, strict=True):
        found = translate(server, document)
        assert plain(found) == text
        assert Counter(_TAG.findall(found)) == Counter(_TAG.findall(document))
        assert tree(found) == tree(document)


def test_deepl_has_them_too(server: Server, translator: Translator) -> None:
    job = {"text": ["Open <b>the file</b>."], "target_lang": "DE", "source_lang": "EN"}
    (found,) = server.post("/v2/translate", {**job, "tag_handling": "html"}).json["translations"]
    assert plain(found["text"]) == translator.translate("Open the file.", **LANGUAGES)
    assert words_in(found["text"], "b") == "die Datei"


@pytest.mark.parametrize(
    "document",
    [
        "<b>" * 2500 + "Open the file." + "</b>" * 2500,
        "<b>Open</b> " * 1500,
        "</b>Open <i>" * 1000,
        "<b><i>Open</b> the</i> file.",
        "Open" + "<img>" * 3000,
        "<b>Open <a>the <i>file</b></a></i>.",
    ],
)
def test_tags_without_end_or_order(server: Server, document: str) -> None:
    found = translate(server, document)
    assert Counter(_TAG.findall(found)) == Counter(_TAG.findall(document))


def test_a_bundle_that_does_not_align(
    demo_bundle: Path, translator: Translator, tmp_path: Path
) -> None:
    """Without the graph of attention, sentences end at their tags."""
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "old"))
    (bundle / CROSS_ATTENTION_FILE).unlink()

    def forget(manifest: dict[str, Any]) -> None:
        for part in ("graphs", "files"):
            del manifest[part][CROSS_ATTENTION_FILE]

    edit(bundle / MANIFEST_FILE, forget)
    with serving(bundle, tmp_path) as server:
        found = translate(server, "Open <b>the file</b>.")
    parts = [translator.translate(text, **LANGUAGES) for text in ("Open", "the file")]
    assert found == f"{parts[0]} <b>{parts[1]}</b>."


def test_the_search_for_a_head_keeps_to_the_deadline(
    demo_bundle: Path, translator: Translator, tmp_path: Path
) -> None:
    """It goes on after the request is over, for all that ask later."""
    text = "Open <b>the file</b>."
    with serving(demo_bundle, tmp_path, "--deadline", "0.05", "--parallel", "2") as server:
        job = {"q": text, "source": "en", "target": "de", "format": "html"}
        answers = []
        end = time.monotonic() + 30
        while not answers or answers[-1].status != 200:
            assert time.monotonic() < end
            answers.append(server.post("/translate", job))
    assert {answer.status for answer in answers} == {504, 200}
    found = answers[-1].json["translatedText"]
    assert plain(found) == translator.translate("Open the file.", **LANGUAGES)
    assert words_in(found, "b") == "die Datei"
