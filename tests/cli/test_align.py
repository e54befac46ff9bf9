"""`m2m100 align`: pairs in, links and pictures out."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from m2m100_onnx import Translator
from shell import Shell

PAIRS = ["Open the file.\tÖffnen Sie die Datei.", "<b>Quit</b>\tBeenden &"]


def command(bundle: Path, *more: str) -> list[str]:
    return ["align", "-m", str(bundle), "-s", "en", "-t", "de", *more]


def test_links_are_those_of_the_translator(
    demo_bundle: Path, translator: Translator, shell: Shell, tmp_path: Path
) -> None:
    file = tmp_path / "pairs.tsv"
    file.write_text("\n".join(PAIRS) + "\n", encoding="utf-8")
    status, out, _ = shell(*command(demo_bundle, "--input", str(file)))
    sides = [pair.split("\t") for pair in PAIRS]
    sources, targets = [s for s, _ in sides], [t for _, t in sides]
    found = translator.align(sources, targets, source_lang="en", target_lang="de")
    assert (status, out.decode().splitlines()) == (0, [str(alignment) for alignment in found])
    status, out, _ = shell(*command(demo_bundle, *PAIRS, "--json", "--heads", "1:0,2"))
    record = json.loads(out.splitlines()[0])
    assert record["source_words"] == list(found[0].source_words)
    assert len(record["matrix"]) == len(record["target_words"])
    assert record["matrix"] != [list(row) for row in found[0].matrix]
    status, again, _ = shell(
        *command(demo_bundle, *PAIRS, "--json", "--heads", "1:0,2", "--predicting")
    )
    assert status == 0
    assert again != out


class Cells(HTMLParser):
    """Counts a page's cells, and collects the texts of its headings and its addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = self.marked = 0
        self.words: list[str] = []
        self.addresses: list[str | None] = []
        self._heading = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.cells += tag == "td"
        self.marked += ("class", "pair") in attrs
        self._heading = tag == "th"
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self._heading and data.strip():
            self.words.append(data)


def test_a_page_shows_every_pair(
    demo_bundle: Path, translator: Translator, shell: Shell, tmp_path: Path
) -> None:
    page = tmp_path / "plot.html"
    assert shell(*command(demo_bundle, *PAIRS, "--plot", str(page)))[0] == 0
    text = page.read_text(encoding="utf-8")
    parsed = Cells()
    parsed.feed(text)
    # "<", "b", ">" are words.
    assert parsed.cells == 4 * 5 + 8 * 2
    sides = [pair.split("\t") for pair in PAIRS]
    found = [translator.align(*side, source_lang="en", target_lang="de") for side in sides]
    assert parsed.marked == sum(len(alignment.pairs) for alignment in found) > 4
    assert {"Öffnen", "Datei", "<", "Quit", "&"} <= set(parsed.words)
    assert not parsed.addresses
    assert "<b>" not in text
    assert not re.search("https?:", text)


@pytest.mark.parametrize(("suffix", "head"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_drawn_pictures(
    demo_bundle: Path, shell: Shell, tmp_path: Path, suffix: str, head: bytes
) -> None:
    picture = tmp_path / f"plot{suffix}"
    assert shell(*command(demo_bundle, *PAIRS, "--plot", str(picture)))[0] == 0
    assert picture.read_bytes().startswith(head)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("one side",), "text 1: expected a source and its translation with a tab"),
        (("a\tb", "--plot", "x.bmp"), "--plot: expected a name that ends in .html"),
        (("a\tb", "--predicting"), "--predicting: expected --heads with it"),
        (("a\tb", "--heads", "9:0"), "heads: expected a layer from -3 to 2, found 9"),
        (("a\tb",) * 101 + ("--plot", "x.html"), "--plot: expected at most 100 pairs"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1],
)
def test_wrong_arguments(
    demo_bundle: Path, shell: Shell, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    more = tuple(str(tmp_path / part) if part.startswith("x.") else part for part in more)
    status, _, err = shell(*command(demo_bundle, *more))
    assert status == 2
    assert message in err
    assert not list(tmp_path.iterdir())


def test_heads_that_are_none(demo_bundle: Path, shell: Shell) -> None:
    with pytest.raises(SystemExit):
        shell(*command(demo_bundle, "a\tb", "--heads", "first"))
