"""Terms and stops on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2m100_onnx import Translator
from shell import Shell, arguments, expected


def test_terms_come_from_a_file(
    demo_bundle: Path, translator: Translator, shell: Shell, tmp_path: Path
) -> None:
    file = tmp_path / "terms.tsv"
    file.write_text("file\tarchive\nfolder\tdossier\n", encoding="utf-8")
    texts = ["Open the file.", "Quit"]
    flags = ["--terms", str(file), "--beam-size", "5"]
    status, out, _ = shell(*arguments(demo_bundle, *texts, *flags))
    found = expected(translator, texts, terms={"file": "archive"}, beam_size=5)
    assert "archive" in found[0].text
    assert (status, out.decode().splitlines()) == (0, [translation.text for translation in found])
    absent = str(tmp_path / "absent")
    status, _, err = shell(*arguments(demo_bundle, "Quit", "--terms", absent))
    assert status == 2
    assert f"cannot read {absent}: No such file" in err
    status, _, err = shell(*arguments(demo_bundle, "Quit", "--terms", str(file)))
    assert status == 2
    assert "--terms: expected beam search with beam_size above 1" in err


@pytest.mark.parametrize("value", ['["x", [7, 8]]', "7,8", "7,8;9", " und", '{"a": 1}'])
def test_stops_are_texts_and_ids(demo_bundle: Path, shell: Shell, value: str) -> None:
    assert shell(*arguments(demo_bundle, "Quit", "--stop-sequences", value))[0] == 0


def test_stops_that_are_neither(demo_bundle: Path, shell: Shell) -> None:
    status, _, err = shell(*arguments(demo_bundle, "Quit", "--stop-sequences", "[5]"))
    assert status == 2
    assert "--stop-sequences: expected a list of str" in err
    with pytest.raises(SystemExit):
        shell(*arguments(demo_bundle, "Quit", "--stop-sequences", "["))
