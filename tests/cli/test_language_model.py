"""The commands of language models as a user runs them: lines, files, formats and errors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from m2m100_onnx import LanguageModel, Reranker, Translator
from shell import Shell, arguments

TEXTS = ["Open the file and save a copy.", "Close it.", "", "Do you want to delete this folder?"]
MASK = "<special1>"
Xlm = tuple[Path, Path]


def lines(output: bytes) -> list[str]:
    found = output.decode().split("\n")
    assert found.pop() == ""
    return found


def test_scores(causal_xlm: Xlm, shell: Shell, tmp_path: Path) -> None:
    expected = LanguageModel(causal_xlm[1]).score(TEXTS, language="de")
    command = ("score", "--model", str(causal_xlm[1]), "--language", "de")
    source = tmp_path / "in"
    source.write_text("\n".join(TEXTS), "utf-8")
    status, output, errors = shell(*command, "--input", str(source))
    assert (status, errors) == (0, "")
    for line, score in zip(lines(output), expected, strict=True):
        numbers = [float(number) for number in line.split("\t")]
        assert numbers == pytest.approx([score.sum, score.mean, score.perplexity], rel=1e-4)

    _, output, _ = shell(*command, "--json", *TEXTS)
    for line, text, score in zip(lines(output), TEXTS, expected, strict=True):
        record = json.loads(line)
        assert record["text"] == text
        assert record["token_log_probs"] == list(score.token_log_probs)
        assert record["pieces"] == list(score.pieces)

    _, output, _ = shell(*command, "--total", "--json", *TEXTS)
    total = json.loads(output)
    tokens = sum(len(score.tokens) for score in expected)
    everything = math.fsum(score.sum for score in expected)
    assert (total["texts"], total["tokens"]) == (4, tokens)
    assert total["perplexity"] == pytest.approx(math.exp(-everything / tokens))


def test_scores_of_pairs(demo_bundle: Path, shell: Shell, tmp_path: Path) -> None:
    pairs = [("Open the file.", "Öffnen Sie die Datei."), ("Save", "Speichern"), ("Quit", "")]
    expected = Translator(demo_bundle).score(
        [s for s, _ in pairs], [t for _, t in pairs], source_lang="en", target_lang="de"
    )
    source = tmp_path / "pairs"
    source.write_text("".join(f"{s}\t{t}\n" for s, t in pairs), "utf-8")
    command = ("score", "-m", str(demo_bundle), "-s", "en", "-t", "de", "--input", str(source))
    status, output, errors = shell(*command)
    assert (status, errors) == (0, "")
    for line, score in zip(lines(output), expected, strict=True):
        numbers = [float(number) for number in line.split("\t")]
        assert numbers == pytest.approx([score.sum, score.mean, score.perplexity], rel=1e-4)
    total = json.loads(shell(*command, "--total", "--json")[1])
    assert (total["texts"], total["tokens"]) == (3, sum(len(s.tokens) for s in expected))
    source.write_text("a\tb\nc\n", "utf-8")
    status, output, errors = shell(*command)
    assert status != 0
    assert "line 2: expected a source and its translation with a tab" in errors
    status, _, errors = shell("score", "-m", str(demo_bundle), "-s", "en", "a")
    assert status != 0
    assert "expected --source-lang and --target-lang, or --language, found --source-lang" in errors


def test_an_empty_text_of_a_masked_model_has_no_mean(masked_xlm: Xlm, shell: Shell) -> None:
    command = ("score", "-m", str(masked_xlm[1]), "-l", "de", "")
    assert shell(*command)[1] == b"0\tnan\tnan\n"
    assert json.loads(shell(*command, "--json")[1])["perplexity"] is None


def test_generation(causal_xlm: Xlm, shell: Shell) -> None:
    model = LanguageModel(causal_xlm[1])
    expected = model.generate_batch(TEXTS, language="en", max_new_tokens=6, beam_size=3)
    command = ("generate", "-m", str(causal_xlm[1]), "-l", "en", "--max-new-tokens", "6")
    stdin = "\n".join(TEXTS).encode()
    status, output, errors = shell(*command, "--beam-size", "3", stdin=stdin)
    assert (status, errors) == (0, "")
    assert lines(output) == [generation.text for generation in expected]
    _, output, _ = shell(*command, "--beam-size", "3", "--json", TEXTS[0])
    assert json.loads(output)["tokens"] == list(expected[0].tokens)


def test_masks(masked_xlm: Xlm, shell: Shell) -> None:
    model = LanguageModel(masked_xlm[1])
    one, two = f"Open the {MASK}.", f"{MASK} the {MASK}."
    command = ("fill-mask", "-m", str(masked_xlm[1]), "-l", "en", "--top", "2")
    status, output, errors = shell(*command, one, two)
    assert (status, errors) == (0, "")
    masks = [model.fill_mask(one, language="en", top=2)]
    masks += model.fill_mask(two, language="en", top=2)  # type: ignore[arg-type]
    assert [line.split("\t") for line in lines(output)] == [
        [f"{f.piece.removesuffix('</w>')} {f.score:.4g}" for f in mask]  # type: ignore[union-attr]
        for mask in masks
    ]
    records = [json.loads(line) for line in lines(shell(*command, "--json", one, two)[1])]
    assert [len(record["masks"]) for record in records] == [1, 2]
    assert records[0]["masks"][0][0]["text"] == masks[0][0].text  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["score", "a"], "language: expected one of de, en, fr"),
        (["score", "-l", "xx", "a"], "unknown language 'xx'"),
        (["score", "-l", "de", "a", "word " * 70], "text 2: the text has"),
        (["fill-mask", "-l", "de", MASK], "expected a masked language model"),
        (["generate", "-l", "de", "--max-length", "3", "a b c d"], "text 1: prompt: expected"),
        (["score", "-l", "de", "--input", "in", "a"], "expected texts or --input, found both"),
    ],
)
def test_errors(causal_xlm: Xlm, shell: Shell, argv: list[str], message: str) -> None:
    status, output, errors = shell(argv[0], "-m", str(causal_xlm[1]), *argv[1:])
    assert (status, output) == (2, b"")
    assert message in errors
    assert errors.count("\n") == 1


def test_a_line_that_is_no_text(causal_xlm: Xlm, shell: Shell) -> None:
    command = ("score", "-m", str(causal_xlm[1]), "-l", "de")
    status, _, errors = shell(*command, stdin=b"good\n\xff\n")
    assert status == 2
    assert "line 2: expected UTF-8" in errors


def test_info_and_languages(causal_xlm: Xlm, masked_xlm: Xlm, shell: Shell) -> None:
    for folder, kind in ((causal_xlm[1], "causal"), (masked_xlm[1], "masked")):
        status, output, _ = shell("info", str(folder), "--verify")
        assert status == 0
        assert f"{kind} language model, fp32" in output.decode().split("\n")[0]
    facts = json.loads(shell("info", str(causal_xlm[1]), "--json")[1])
    assert (facts["kind"], facts["model"]["causal"]) == ("language model", True)
    assert "model_with_past.onnx" in facts["graphs"]
    assert shell("languages", "-m", str(causal_xlm[1]))[1] == b"de\nen\nfr\n"


def test_causal_is_overridden(masked_xlm: Xlm, shell: Shell, tmp_path: Path) -> None:
    bundle = str(tmp_path / "bundle")
    assert shell("export", str(masked_xlm[0]), bundle, "--causal", "true")[0] == 0
    assert LanguageModel(bundle).causal
    status, output, _ = shell("generate", "-m", bundle, "-l", "de", "Open", "--max-length", "5")
    assert (status, output.count(b"\n")) == (0, 1)
    status, _, errors = shell(
        "export", str(masked_xlm[0]), str(tmp_path / "other"), "--family", "m2m100"
    )
    assert (status, "family: expected none for a language model" in errors) == (2, True)
    assert not (tmp_path / "other").exists()


def test_translations_are_ordered(
    demo_bundle: Path, translator: Translator, causal_xlm: Xlm, shell: Shell
) -> None:
    texts = ["Open the file.", "", "Save a copy before you close the window."]
    plain = translator.translate_batch(
        texts, source_lang="en", target_lang="fr", beam_size=4, num_hypotheses=4
    )
    model = LanguageModel(causal_xlm[1])
    expected = Reranker(model, 30.0).order(plain, ["fr"] * 3)
    assert [t.text for t in expected] != [t.text for t in plain]
    command = arguments(demo_bundle, "--beam-size", "4", "--num-hypotheses", "4", "--json", *texts)
    stdin = shell(*command)[1]
    command = ["rerank", "-m", str(causal_xlm[1]), "--weight", "30"]
    status, output, errors = shell(*command, stdin=stdin)
    assert (status, errors) == (0, "")
    assert lines(output) == [t.text for t in expected]
    records = [json.loads(line) for line in lines(shell(*command, "--json", stdin=stdin)[1])]
    assert [[h["text"] for h in r["hypotheses"]] for r in records] == [
        [h.text for h in t.hypotheses] for t in expected
    ]
    assert [r["source"] for r in records] == texts
    status, _, errors = shell(*command, stdin=stdin + b"plain text\n")
    assert status == 2
    assert "line 4: expected a line of `m2m100 translate --json`, found 'plain text'" in errors
