"""Texts on their way through the server: sentences, markup, codes of languages."""

from __future__ import annotations

import html
import random
import re
from html.parser import HTMLParser

import pytest

from m2m100_onnx.server.languages import supported_code
from m2m100_onnx.server.logs import frames
from m2m100_onnx.server.markup import Markup
from m2m100_onnx.server.passages import cut, joined
from m2m100_onnx.server.refusals import Refused
from m2m100_onnx.server.settings import LIMITS, Limits

M2M100 = ("en", "de", "no", "pt", "zh", "sr")
NLLB = ("eng_Latn", "deu_Latn", "zho_Hans", "zho_Hant", "srp_Cyrl", "por_Latn")


def kept(text: str, language: str, target: str) -> str:
    """The text as it is joined again when nothing is translated."""
    passages = cut(text, language)
    return joined(passages, target, {n: p.text for n, p in enumerate(passages)})


def test_passages_make_up_the_text() -> None:
    random_ = random.Random(5)
    parts = [
        "Dr. No said: Yes.",
        " ",
        "\n",
        "\r\n",
        "\t",
        "…",
        "😀",
        "你好。",
        "What?",
        "a",
        "\u2028",
    ]
    for _ in range(500):
        text = "".join(random_.choices(parts, k=random_.randint(0, 9)))
        passages = cut(text, "en")
        assert "".join(passage.text for passage in passages) == text
        assert all(re.search(r"\w", p.text) for p in passages if p.translated)


def test_sentences_are_found() -> None:
    text = "  Dr. Smith is here. He left.\n\nYes"
    sentences = [passage.text for passage in cut(text, "en") if passage.translated]
    assert sentences == ["Dr. Smith is here.", "He left.", "Yes"]


def test_spaces_between_sentences_are_those_of_the_target() -> None:
    assert kept("你好。世界很大。", "zh", "en") == "你好。 世界很大。"
    assert kept("It is. It was.", "en", "zh") == "It is.It was."
    assert kept("It is.  It was.", "eng_Latn", "deu_Latn") == "It is.  It was."


def runs(document: str, *, inline: bool = True) -> list[str]:
    return [run.text for run in Markup(document, inline=inline).runs]


def test_markup_stays() -> None:
    page = '<p title="Open">Open &lt;it&gt;\n <b>now</b> &#x41;bc</p><!-- no --><BR/>end &amp; off'
    assert runs(page) == ["Open <it>  now Abc", "end & off"]
    assert runs(page, inline=False) == ["Open <it>", "now", "Abc", "end & off"]
    assert Markup(page, inline=False).filled(["1 &lt;", "2", "3", "4 &amp; 5"]) == (
        '<p title="Open">1 &lt;\n <b>2</b> 3</p><!-- no --><BR/>4 &amp; 5'
    )


def test_where_runs_end() -> None:
    for page, expected in (
        ("<td>a</td><td>b</td>", ["a", "b"]),
        ("a<br>b<hr>c", ["a", "b", "c"]),
        ("a <code>b</code> c", ["a", "c"]),
        ("a <b translate=no>b</b> <i>c</i>", ["a", "c"]),
        ("<div translate=no>a <b>b</b> <i translate=yes>c</i></div>", ["c"]),
        ("a<!-- x --> b<wbr>c", ["a bc"]),
        ("<b><i>a</b></i> b", ["a", "b"]),  # They cross.
        ("<my-tag>a</my-tag> b", ["a", "b"]),
        ("It is.\nIt was\nso.", ["It is.\nIt was so."]),
    ):
        assert runs(page) == expected


def test_what_is_no_prose_is_left() -> None:
    for page in (
        "<script>var a = 1 < 2;</script>",
        "<style>p { color: red }</style>",
        "<code>open <b>it</b></code>",
        "<p translate=no>Name <i>of</i> it</p>",
        "<img alt='x'>",
        "   ",
        "",
    ):
        assert runs(page) == []
        assert Markup(page).filled([]) == page
    page = "<div translate='no'>a <p translate='yes'>b</p> c<br>d</div>e"
    assert runs(page) == ["b", "e"]


class Tags(HTMLParser):
    """The tags of a document."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(f"{tag} {attrs}")

    def handle_endtag(self, tag: str) -> None:
        self.found.append(tag)


def test_random_documents_keep_their_tags() -> None:
    random_ = random.Random(7)
    parts = ["<p>", "</p>", "<b x='1'>", "</b>", "<br/>", "text", " ", "&amp;", "&lt;b&gt;", "é"]
    for _ in range(500):
        page = "".join(random_.choices(parts, k=random_.randint(0, 12)))
        markup = Markup(page, inline=False)
        filled = markup.filled([html.escape(f"<i>{run.text}") for run in markup.runs])
        assert Tags(filled).found == Tags(page).found
        # What is not translated is the same document.
        filled = markup.filled([html.escape(run.text) for run in markup.runs])
        assert html.unescape(filled) == html.unescape(page)


def test_tags_that_are_never_closed_take_no_time() -> None:
    for part in ("<a ", "<a b='", "a<b ", '"\'<a b="'):
        with pytest.raises(Refused, match="too many tags"):
            Markup(part * 5000)
    assert len(runs("<p>if a < b" * 1000)) == 1000


@pytest.mark.parametrize(
    ("name", "codes", "expected"),
    [
        ("EN", M2M100, "en"),
        ("en-US", M2M100, "en"),
        ("nb", M2M100, "no"),
        ("pt-BR", M2M100, "pt"),
        ("pb", M2M100, "pt"),
        ("zh-Hans", M2M100, "zh"),
        ("zh_CN", M2M100, "zh"),
        ("zh-Hant", M2M100, None),
        ("zt", M2M100, None),
        ("sr-Latn", M2M100, None),
        ("", M2M100, None),
        ("en", NLLB, "eng_Latn"),
        ("ENG_LATN", NLLB, "eng_Latn"),
        ("zh-Hant", NLLB, "zho_Hant"),
        ("German", NLLB, "deu_Latn"),
    ],
)
def test_codes(name: str, codes: tuple[str, ...], expected: str | None) -> None:
    assert supported_code(name, codes) == expected


def test_limits_are_checked() -> None:
    assert Limits(texts=3).texts == 3
    assert set(LIMITS) == set(vars(Limits()))
    for name, row in LIMITS.items():
        assert row.low is not None, name
        with pytest.raises(ValueError, match=f"{name}: expected"):
            Limits(**{name: row.low - 1})


def test_an_error_is_logged_without_its_message() -> None:
    try:
        raise ValueError("the secret text")
    except ValueError as error:
        found = frames(error)
    assert found["error"] == "ValueError"
    assert "secret" not in str(found)
    assert "test_an_error" in str(found)
