"""`m2m100 translate` as a user runs it: lines, files, pipes, terminals and exit statuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from background import usual
from m2m100_onnx import Translation, Translator
from m2m100_onnx.cli.main import main
from m2m100_onnx.errors import DeadlineExceeded
from m2m100_onnx.options import OPTIONS
from m2m100_onnx.text.tokenizer import Tokenizer
from shell import GREEDY, LINES, Shell, arguments, expected, run

# translate: lines


def test_a_line_comes_out_for_each_that_goes_in_and_in_the_same_order(
    answer: str, translator: Translator, command: list[str], environment: dict[str, str]
) -> None:
    # The last line has no newline; one ends as on Windows.
    stdin = "\n".join(LINES).replace("Delete", "Open\r\nDelete").encode()
    result = run([*command, "--read-ahead", "3"], environment, stdin)
    found = result.stdout.decode().split("\n")
    assert (result.returncode, result.stderr) == (0, b"")
    assert found.pop() == ""
    assert found == [t.text for t in expected(translator, [*LINES[:-1], "Open", LINES[-1]])]
    assert found[1] == found[3] == ""
    assert found[0] == answer


def test_the_same_lines_whatever_is_read_ahead(demo_bundle: Path, shell: Shell) -> None:
    stdin = "\n".join(LINES).encode()
    outputs = {
        shell(*arguments(demo_bundle, "--read-ahead", ahead), stdin=stdin)[1]
        for ahead in ("1", "2", "1000")
    }
    assert len(outputs) == 1


def test_no_input_gives_no_output(demo_bundle: Path, shell: Shell) -> None:
    assert shell(*arguments(demo_bundle)) == (0, b"", "")


def test_only_newlines_give_only_newlines(demo_bundle: Path, shell: Shell) -> None:
    assert shell(*arguments(demo_bundle), stdin=b"\n\r\n\n") == (0, b"\n\n\n", "")


def test_texts_may_be_arguments(demo_bundle: Path, translator: Translator, shell: Shell) -> None:
    texts = ["Open the file.", "two\nlines", ""]
    status, output, _ = shell(*arguments(demo_bundle, *texts))
    assert status == 0
    assert output.decode().split("\n") == [*(t.text for t in expected(translator, texts)), ""]


def test_a_translation_is_one_line_even_if_the_vocabulary_holds_line_breaks(
    demo_bundle: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "m2m100_onnx.text.tokenizer.Tokenizer.decode", lambda *_: "a\nb\r\nc\rd\u2028e"
    )
    assert shell(*arguments(demo_bundle, "x", "y"))[1].decode() == "a b c d\u2028e\n" * 2
    record = json.loads(shell(*arguments(demo_bundle, "x", "--json"))[1])
    assert record["text"] == "a\nb\r\nc\rd\u2028e"


def test_json_holds_all_a_translation_does(
    demo_bundle: Path, translator: Translator, shell: Shell
) -> None:
    argv = arguments(demo_bundle, "--json", "--beam-size", "3", "--num-hypotheses", "2")
    status, output, _ = shell(*argv, stdin="\n".join(LINES).encode())
    lines = output.decode().split("\n")
    assert (status, lines.pop()) == (0, "")
    for source, line, translation in zip(
        LINES, lines, expected(translator, LINES, beam_size=3, num_hypotheses=2), strict=True
    ):
        record = json.loads(line)
        names = ["source", "source_lang", "target_lang", "text", "score", "tokens", "hypotheses"]
        assert list(record) == names
        assert [record[name] for name in names[:3]] == [source, "en", "fr"]
        assert record["text"] == translation.text
        assert record["score"] == pytest.approx(translation.score, abs=1e-4)
        assert record["tokens"] == list(translation.tokens)
        assert [h["tokens"] for h in record["hypotheses"]] == [
            list(h.tokens) for h in translation.hypotheses
        ]
        assert [set(h) for h in record["hypotheses"]] == [
            {"text", "score", "tokens", "token_log_probs"}
        ] * len(translation.hypotheses)


def test_json_leaves_text_readable(demo_bundle: Path, shell: Shell) -> None:
    assert (
        "打开\u2028文件" in shell(*arguments(demo_bundle, "打开\u2028文件", "--json"))[1].decode()
    )


def test_options_reach_the_search(
    demo_bundle: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, object]] = []

    def record(*_: object, **options: object) -> Iterator[Translation]:
        seen.append(options)
        return iter(())

    monkeypatch.setattr(Translator, "translate_iterable", record)
    given = {
        "beam_size": 4,
        "num_hypotheses": 2,
        "max_length": 50,
        "min_length": 3,
        "length_penalty": -0.5,
        "early_stopping": "never",
        "patience": 2.0,
        "num_beam_groups": 2,
        "diversity_penalty": 0.5,
        "max_length_ratio": 2.5,
        "stop_sequences": ("Das Ende",),
        "no_repeat_ngram_size": 3,
        "repetition_penalty": 1.5,
        "suppress_tokens": (7, 8),
        "suppress_sequences": ((7, 8), (9,)),
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.9,
        "min_p": 0.1,
        "seed": 4,
        "max_batch_tokens": 99,
        "max_batch_bytes": 1000,
        "timeout": 2.5,
    }
    switches = dict.fromkeys(("do_sample", "disable_unk", "replace_unknowns", "alignments"), True)
    assert {*given, *switches, "truncate"} == set(OPTIONS)
    shown = {
        **given,
        "suppress_tokens": "7,8",
        "suppress_sequences": "7,8;9",
        "stop_sequences": "Das Ende",
    }
    flags = [part for name, v in shown.items() for part in (f"--{name.replace('_', '-')}", str(v))]
    flags += [
        *(f"--{name.replace('_', '-')}" for name in switches),
        "--truncate",
        "--read-ahead",
        "7",
        "--target-prefix",
        "Das",
    ]
    assert shell(*arguments(demo_bundle, *flags))[0] == 0
    languages = {"source_lang": "en", "target_lang": "fr"}
    outside: dict[str, object] = {**languages, "on_error": "raise"}
    wanted = {**outside, **given, **switches, "truncate": True, "read_ahead": 7}
    assert seen.pop() == {**wanted, "target_prefix": "Das"}
    for value, meant in (("true", True), ("false", False), ("never", "never")):
        shell(*arguments(demo_bundle, "--early-stopping", value))
        assert seen.pop()["early_stopping"] == meant
    # The bundle decides what is not given.
    shell(*[part for part in arguments(demo_bundle) if part not in GREEDY])
    assert seen.pop() == {**outside, "read_ahead": 256}


def test_prefixes_and_samples(demo_bundle: Path, translator: Translator, shell: Shell) -> None:
    languages: dict[str, Any] = {"source_lang": "en", "target_lang": "de"}
    command = ("translate", "-m", str(demo_bundle), "-s", "en", "-t", "de", "Open the file.")
    _, output, _ = shell(*command, "--target-prefix", "Bitte")
    wanted = translator.translate("Open the file.", **languages, target_prefix="Bitte")
    assert output.decode() == f"{wanted}\n"
    assert wanted.startswith("Bitte")
    drawn = ("--do-sample", "--seed", "3", "--temperature", "1.5", "--num-hypotheses", "2")
    _, output, _ = shell(*command, *drawn, "--json")
    (found,) = translator.translate_batch(
        ["Open the file."], **languages, do_sample=True, seed=3, temperature=1.5, num_hypotheses=2
    )
    assert [h["text"] for h in json.loads(output)["hypotheses"]] == [
        h.text for h in found.hypotheses
    ]
    status, _, errors = shell(*command, "--do-sample", "--beam-size", "3")
    assert status != 0
    assert "do_sample: expected" in errors or "--do-sample: expected" in errors


def test_short_flags_and_home_folders(
    answer: str, demo_bundle: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(demo_bundle.parent))
    argv = ["translate", "-m", f"~/{demo_bundle.name}", "-s", "en", "-t", "fr", *GREEDY]
    assert shell(*argv, "Open the file.")[1] == f"{answer}\n".encode()
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "in").write_text("Open the file.")
    argv[2] = str(demo_bundle)
    assert shell(*argv, "--input=~/in", "--output=~/out", "--cache-dir=~/cache") == (0, b"", "")
    assert (tmp_path / "out").read_text() == f"{answer}\n"


# translate: what goes wrong


def test_a_bad_line_is_named_after_those_before_it_are_written(
    answer: str, command: list[str], environment: dict[str, str]
) -> None:
    result = run(command, environment, b"Open the file.\n\nnot \xff UTF-8\nDelete\n")
    assert result.returncode == 2
    assert result.stdout.decode() == f"{answer}\n\n"
    message = result.stderr.decode()
    assert message.startswith("m2m100: error: line 3: ")
    assert "0xff in position 4" in message
    assert message.count("\n") == 1


def test_each_line_is_tokenized_once(
    demo_bundle: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = Tokenizer.encode

    def encode(self: Tokenizer, text: str, *languages: str) -> list[int]:
        seen.append(text)
        return real(self, text, *languages)

    monkeypatch.setattr(Tokenizer, "encode", encode)
    assert shell(*arguments(demo_bundle), stdin=b"one\ntwo\nthree\n")[0] == 0
    assert sorted(seen) == ["one", "three", "two"]


def test_what_is_done_at_the_timeout_is_written(
    demo_bundle: Path, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = b"Delete\n" * 3
    status, output, errors = shell(*arguments(demo_bundle, "--timeout", "0"), stdin=stdin)
    assert (status, output) == (1, b"")
    assert errors == "m2m100: error: --timeout: 0 s are over; lines translated: 0\n"

    def stopping(*_: object, **__: object) -> Iterator[Translation]:
        yield Translation("done", 0.0, (), ())
        raise DeadlineExceeded("timeout: 5 s are over")

    monkeypatch.setattr(Translator, "translate_iterable", lambda _, texts, **__: reading(texts))

    def reading(texts: Iterable[str]) -> Iterator[Translation]:
        list(texts)
        return stopping()

    status, output, errors = shell(*arguments(demo_bundle, "--timeout", "5"), stdin=stdin)
    assert (status, output) == (1, b"done\n")
    assert errors == "m2m100: error: --timeout: 5 s are over; lines translated: 1\n"
    # A named file is replaced when all is done, or not at all.
    target = tmp_path / "out"
    target.write_bytes(b"old\n")
    argv = arguments(demo_bundle, "--timeout", "5", "--output", str(target))
    status, output, errors = shell(*argv, stdin=stdin)
    assert (status, output, target.read_bytes()) == (1, b"", b"old\n")


def test_a_text_that_is_too_long_is_named_by_its_line(
    answer: str, demo_bundle: Path, translator: Translator, shell: Shell
) -> None:
    long = "file " * 400
    stdin = f"Open the file.\n{long}\nDelete\n".encode()
    status, output, errors = shell(*arguments(demo_bundle), stdin=stdin)
    assert (status, output.decode()) == (2, f"{answer}\n")
    limit = translator.bundle.config.max_position_embeddings
    assert errors.startswith("m2m100: error: line 2: the text has ")
    assert f"at most {limit}" in errors
    status, output, _ = shell(*arguments(demo_bundle, "--truncate", *GREEDY), stdin=stdin)
    assert (status, output.count(b"\n")) == (0, 3)


def test_an_argument_that_is_no_text_is_named_by_its_number(
    answer: str, command: list[str], environment: dict[str, str]
) -> None:
    result = run([*command, "Open the file.", os.fsdecode(b"\xff")], environment)
    assert (result.returncode, result.stdout) == (2, f"{answer}\n".encode())
    assert result.stderr.startswith(b"m2m100: error: text 2: ")
    assert b"Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("more", "expected_message"),
    [
        (("--source-lang", "EN"), "did you mean 'en'"),
        (("--target-lang", "af"), "not trained on it"),
        (("--beam-size", "0"), "error: --beam-size: expected"),
        (("--num-hypotheses", "2"), "error: --num-hypotheses: expected at most --beam-size = 1"),
        (("--max-length", "100000"), "error: --max-length: expected at most the model"),
        (("--read-ahead", "0"), "error: --read-ahead: expected"),
        (("--threads", "0"), "error: --threads: expected"),
        (("--device", "abacus"), "abacus"),
        (("--input", "absent.txt"), "cannot read absent.txt: No such file"),
        (("--output", "absent/out.txt"), "cannot write absent/out.txt: No such file"),
        (("--input", "in.txt", "text"), "found both"),
        (("--model", "absent"), "absent"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_read(
    demo_bundle: Path, shell: Shell, more: tuple[str, ...], expected_message: str
) -> None:
    # Whatever is read of this input first would be an error of its own.
    status, output, errors = shell(*arguments(demo_bundle, *more), stdin=b"\xff\n")
    assert (status, output) == (2, b"")
    assert errors.startswith("m2m100: error: ")
    assert errors.count("\n") == 1
    assert expected_message in errors


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("translate",),
        ("dance",),
        ("languages", "--model"),
        ("translate", "--model", "m", "--source-lang", "en", "--target-lang", "fr", "--beam", "2"),
        ("export", "a", "b", "--precision", "fp8"),
    ],
)
def test_usage_errors_exit_with_2(argv: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2


def test_a_reader_that_leaves_is_no_error(
    command: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    lines = tmp_path / "lines"
    lines.write_bytes(b"Delete\n" * 20_000)
    with subprocess.Popen(
        [*command, "--input", str(lines), "--read-ahead", "8"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_gives_one_error(command: list[str], environment: dict[str, str]) -> None:
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [*command, "Delete"], env=environment, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert result.returncode == 1
    assert result.stderr.startswith(b"m2m100: error: ")
    assert result.stderr.count(b"\n") == 1


def test_an_interrupt_ends_quietly_and_what_was_answered_stays(
    answer: str, command: list[str], environment: dict[str, str]
) -> None:
    with subprocess.Popen(
        [*command, "--read-ahead", "1"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=usual,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(b"Open the file.\n")
        process.stdin.flush()
        assert process.stdout.readline() == f"{answer}\n".encode()
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
    assert (process.returncode, errors) == (130, b"")
