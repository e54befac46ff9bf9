"""Terms in texts, and files of terms."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from m2m100_onnx import InvalidInputError
from m2m100_onnx.text.term_files import read_terms
from m2m100_onnx.text.terms import Finder


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The cloud, a Cloud; clouds and CLOUD.", ["cloud", "cloud"]),
        ("cloud storage in the cloud", ["cloud storage", "cloud"]),
        ("it is IT", ["IT"]),
        ("the_cloud cloud_ cloudé cloud2", []),
        ("cloud-based, (cloud)", ["cloud", "cloud"]),
        ("cloud cloud", ["cloud"]),
        ("cloud, cloud", ["cloud", "cloud"]),
        ("C++ code", ["C++"]),
        ("我打开文件。文件", ["文件", "文件"]),
        ("구름은", ["구름"]),
        ("", []),
    ],
)
def test_terms_are_whole_words(text: str, found: list[str]) -> None:
    finder = Finder(["cloud", "cloud storage", "IT", "C++", "文件", "구름"])
    assert list(finder(text)) == found


def test_letters_may_be_composed_or_not() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert list(Finder([composed])(f"le {decomposed}.")) == [composed]
    assert list(Finder([decomposed])(f"le {composed}s, {composed}.")) == [decomposed]
    # A mark that combines with a term's last letter makes another word.
    assert not list(Finder(["x"])("x\u0301"))


def test_random_terms_against_a_regular_expression() -> None:
    rng = random.Random(5)
    for _ in range(300):
        terms = {"".join(rng.choices("ab c", k=rng.randint(1, 4))).strip() for _ in range(4)}
        terms -= {""}
        if not terms:
            continue
        text = "".join(rng.choices("abc  ,", k=40))
        longest = sorted(terms, key=len, reverse=True)
        pattern = rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)"
        expected, end, last = [], 0, ""
        for match in re.finditer(pattern, text):
            if not (match[0] == last and text[end : match.start()].isspace()):
                expected.append(match[0])
            end, last = match.end(), match[0]
        assert list(Finder(terms)(text)) == expected


TBX = """<?xml version="1.0" encoding="UTF-8"?>
<tbx type="TBX-Basic" style="dca" xml:lang="en" xmlns="urn:iso:std:iso:30042:ed-2"><text><body>
<conceptEntry id="c1">
  <langSec xml:lang="en"><termSec><term>cloud</term></termSec></langSec>
  <langSec xml:lang="de-AT"><termSec><term>Wolke</term></termSec>
    <termSec><term>Wolken</term></termSec></langSec>
</conceptEntry>
<conceptEntry id="c2">
  <langSec xml:lang="en-US"><termSec><term>file</term></termSec>
    <termSec><term>record</term></termSec></langSec>
  <langSec xml:lang="de"><termSec><term>Datei &amp; Satz</term></termSec></langSec>
</conceptEntry>
<conceptEntry id="c3">
  <langSec xml:lang="fr"><termSec><term>nuage</term></termSec></langSec>
</conceptEntry>
</body></text></tbx>"""
MARTIF = """<?xml version="1.0"?><!DOCTYPE martif SYSTEM "TBXcoreStructV02.dtd">
<martif type="TBX" xml:lang="en"><text><body><termEntry id="1">
<langSet xml:lang="en"><tig><term>cloud</term></tig></langSet>
<langSet xml:lang="de"><ntig><termGrp><term>Wolke</term></termGrp></ntig></langSet>
</termEntry></body></text></martif>"""


@pytest.mark.parametrize("codes", [("en", "de"), ("eng_Latn", "deu_Latn")])
def test_tbx(tmp_path: Path, codes: tuple[str, str]) -> None:
    file = tmp_path / "terms.tbx"
    file.write_text(TBX, encoding="utf-8")
    both = ("Datei & Satz",)
    assert read_terms(file, *codes) == {
        "cloud": ("Wolke", "Wolken"),
        "file": both,
        "record": both,
    }
    file.write_text(MARTIF, encoding="utf-8")
    assert read_terms(file, *codes) == {"cloud": ("Wolke",)}
    with pytest.raises(InvalidInputError, match="expected terms from en to ru, found none"):
        read_terms(file, "en", "ru")


def test_lines(tmp_path: Path) -> None:
    file = tmp_path / "terms.tsv"
    file.write_bytes(
        "\ufeff# a comment\r\ncloud\tWolke\tWolken\r\n\r\nopen source\tquelloffen\n".encode()
    )
    assert read_terms(file, "en", "de") == {
        "cloud": ("Wolke", "Wolken"),
        "open source": ("quelloffen",),
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "cloud", "a.tsv, line 1: expected a term and its target, found 'cloud'"),
        ("a.tsv", "x\ty\ncloud\t\n", "a.tsv, line 2: expected a term and its target"),
        ("a.tsv", "x\ty\nx\tz\n", "a.tsv, line 2: expected one entry of 'x'"),
        ("a.tsv", "", "a.tsv: expected terms, found none"),
        ("a.tbx", "<tbx>", "a.tbx: expected TBX, found"),
        ("a.xml", "<html/>", "a.xml: expected TBX, found no conceptEntry"),
        (
            "a.tbx",
            '<!DOCTYPE x [<!ENTITY a "b">]><tbx>&a;</tbx>',
            "a.tbx: expected TBX without entities",
        ),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InvalidInputError, match=message):
        read_terms(tmp_path / name, "en", "de")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInputError, match="expected UTF-8"):
        read_terms(tmp_path / "a.tsv", "en", "de")
    with pytest.raises(FileNotFoundError):
        read_terms(tmp_path / "b.tsv", "en", "de")
