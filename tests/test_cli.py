"""The command as a user runs it: processes, pipes, terminals, files and exit statuses."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from io import BytesIO, TextIOWrapper
from pathlib import Path

import numpy as np
import pytest

from m2m100_onnx import Bundle, Translation, Translator, __version__, cli
from m2m100_onnx.tokenizer import LANGUAGE_CODES
from m2m100_onnx_export import Export
from m2m100_onnx_export.verify import Report, TranslationCheck

LINES = (
    "Open the file.",
    "",
    "The file already exists.",
    "   ",
    "one\u2028two\u0085three\x0bfour\x0cfive\u2029six",
    "Save a copy before you close the window.",
    "carriage\rreturn",
    "Delete",
)
GREEDY = ("--beam-size", "1")


@pytest.fixture(scope="module")
def environment(repository: Path) -> dict[str, str]:
    """What a service has: the runtime, and no exporter."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "PYTHONPATH": str(repository / "runtime")}


@pytest.fixture(scope="module")
def command(demo_bundle: Path) -> list[str]:
    """`translate` with its required arguments, as a process."""
    return [sys.executable, "-m", "m2m100_onnx", *arguments(demo_bundle)]


def arguments(bundle: Path, *more: str) -> list[str]:
    languages = ("--source-lang", "en", "--target-lang", "fr")
    return ["translate", "--model", str(bundle), *languages, *GREEDY, *more]


def expected(translator: Translator, texts: Sequence[str], **options: object) -> list[Translation]:
    settings: dict[str, object] = {"beam_size": 1, **options}
    return translator.translate_batch(
        list(texts),
        source_lang="en",
        target_lang="fr",
        **settings,  # type: ignore[arg-type]
    )


def run(
    command: Sequence[str], environment: dict[str, str], stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    # Elsewhere than in the repository, so that PYTHONPATH alone decides what can be imported.
    return subprocess.run(
        command,
        input=stdin,
        env=environment,
        cwd=tempfile.gettempdir(),
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def answer(translator: Translator) -> str:
    """What the library says to "Open the file." in French: the command must print the same."""
    return translator.translate("Open the file.", source_lang="en", target_lang="fr")


class Shell:
    """Runs `main` in this process, as often as a test likes."""

    def __init__(self, capture: pytest.CaptureFixture[bytes], patch: pytest.MonkeyPatch) -> None:
        self._capture, self._patch = capture, patch

    def __call__(self, *argv: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
        self._patch.setattr(sys, "stdin", TextIOWrapper(BytesIO(stdin)))
        status = cli.main(argv)
        output, errors = self._capture.readouterr()
        return status, output, errors.decode()


@pytest.fixture
def shell(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(capfdbinary, monkeypatch)


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
    monkeypatch.setattr("m2m100_onnx.tokenizer.Tokenizer.decode", lambda *_: "a\nb\r\nc\rd\u2028e")
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
        assert [set(h) for h in record["hypotheses"]] == [{"text", "score", "tokens"}] * len(
            translation.hypotheses
        )


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
        "no_repeat_ngram_size": 3,
        "repetition_penalty": 1.5,
        "max_batch_tokens": 99,
    }
    flags = [part for name, v in given.items() for part in (f"--{name.replace('_', '-')}", str(v))]
    assert shell(*arguments(demo_bundle, *flags, "--truncate", "--read-ahead", "7"))[0] == 0
    languages = {"source_lang": "en", "target_lang": "fr"}
    assert seen.pop() == {**languages, **given, "truncate": True, "read_ahead": 7}
    for value, meant in (("true", True), ("false", False), ("never", "never")):
        shell(*arguments(demo_bundle, "--early-stopping", value))
        assert seen.pop()["early_stopping"] == meant
    # What is not given is the bundle's to decide.
    shell(*[part for part in arguments(demo_bundle) if part not in GREEDY])
    assert seen.pop() == {**languages, "truncate": False, "read_ahead": 256}


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
        (("--beam-size", "0"), "beam_size"),
        (("--num-hypotheses", "2"), "num_hypotheses"),
        (("--max-length", "100000"), "max_length"),
        (("--read-ahead", "0"), "read_ahead"),
        (("--threads", "0"), "intra_op_num_threads"),
        (("--device", "abacus"), "abacus"),
        (("--input", "absent.txt"), "cannot read absent.txt: No such file"),
        (("--output", "absent/out.txt"), "cannot write absent/out.txt: No such file"),
        (("--input", "in.txt", "text"), "found both"),
        (("--model", "absent"), "absent"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_read(
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
        cli.main(argv)
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
def test_a_full_disk_is_told_once(command: list[str], environment: dict[str, str]) -> None:
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
        # Whoever runs the tests in the background has them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
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


# translate: files


def test_files_are_read_and_written(
    demo_bundle: Path, translator: Translator, shell: Shell, tmp_path: Path
) -> None:
    text = tmp_path / "text"
    text.write_text("\n".join(LINES), encoding="utf-8", newline="")
    # In place, since the input is not touched before all of it is done.
    status, output, errors = shell(
        *arguments(demo_bundle, "--input", str(text), "--output", str(text))
    )
    assert (status, output, errors) == (0, b"", "")
    found = text.read_bytes().decode().split("\n")
    assert found == [*(t.text for t in expected(translator, LINES)), ""]
    assert list(tmp_path.iterdir()) == [text]


def test_a_dash_is_a_standard_stream(answer: str, demo_bundle: Path, shell: Shell) -> None:
    argv = arguments(demo_bundle, "--input", "-", "--output", "-")
    assert shell(*argv, stdin=b"Open the file.") == (0, f"{answer}\n".encode(), "")


def test_a_failed_run_leaves_the_output_as_it_was(
    demo_bundle: Path, shell: Shell, tmp_path: Path
) -> None:
    for name in ("new", "old"):
        path = tmp_path / name
        if name == "old":
            path.write_bytes(b"precious")
        argv = arguments(demo_bundle, "--read-ahead", "1", "--output", str(path))
        assert shell(*argv, stdin=b"Delete\n\xff\n")[0] == 2
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"old": b"precious"}


def test_an_output_file_keeps_its_permissions_and_links(
    demo_bundle: Path, shell: Shell, tmp_path: Path
) -> None:
    old, link, new = tmp_path / "old", tmp_path / "link", tmp_path / "new"
    old.touch(mode=0o640)
    link.symlink_to(old)
    mask = os.umask(0o027)
    try:
        for path in (link, new):
            assert shell(*arguments(demo_bundle, "--output", str(path), "Delete"))[0] == 0
    finally:
        os.umask(mask)
    assert link.is_symlink()
    assert old.read_bytes() == new.read_bytes() != b""
    assert [stat.S_IMODE(path.stat().st_mode) for path in (old, new)] == [0o640, 0o640]


def test_a_device_is_written_and_not_replaced(demo_bundle: Path, shell: Shell) -> None:
    assert shell(*arguments(demo_bundle, "--output", os.devnull, "Delete"))[0] == 0
    assert Path(os.devnull).is_char_device()


# translate: terminals


def test_progress_shows_on_a_terminal_and_not_in_a_pipe(
    command: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    lines = tmp_path / "lines"
    lines.write_bytes(b"Delete\n" * 4)
    argv = [*command, "--input", str(lines), "--read-ahead", "2"]
    ours, theirs = pty.openpty()
    on_terminal = subprocess.run(
        argv, env=environment, stdout=subprocess.PIPE, stderr=theirs, check=False
    )
    shown = os.read(ours, 1 << 16).decode()
    os.close(theirs)
    os.close(ours)
    in_pipe = run(argv, environment)
    assert on_terminal.returncode == in_pipe.returncode == 0
    assert on_terminal.stdout == in_pipe.stdout
    assert in_pipe.stderr == b""
    assert "0 lines" in shown
    assert "lines/s, 50%" in shown
    assert shown.rstrip().endswith("100%")
    assert shown.endswith("\n")


def test_each_line_typed_is_answered_at_once(
    answer: str, command: list[str], environment: dict[str, str]
) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command, env=environment, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        os.close(theirs)
        assert process.stdout
        assert process.stderr
        for line, expected in ((b"Open the file.\n", f"{answer}\n".encode()), (b"\n", b"\n")):
            os.write(ours, line)
            assert process.stdout.readline() == expected
        os.write(ours, b"\x04")
        assert process.stdout.read() == b""
        assert process.stderr.read() == b""
    os.close(ours)
    assert process.returncode == 0


# What a service installs


def test_translating_needs_the_runtime_alone(
    answer: str, demo_bundle: Path, environment: dict[str, str]
) -> None:
    script = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'onnx'): sys.modules[name] = None\n"
        "from m2m100_onnx.cli import main\n"
        "status = main(sys.argv[1:])\n"
        "bad = {'m2m100_onnx_export', 'safetensors', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else status)\n"
    )
    argv = [sys.executable, "-c", script, *arguments(demo_bundle, "Open the file.")]
    result = run(argv, environment)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == f"{answer}\n".encode()


def test_help_imports_nothing_heavy(repository: Path, environment: dict[str, str]) -> None:
    # The package's own __init__ is kept out: what it imports is not this file's doing.
    script = (
        "import sys, types\n"
        "package = types.ModuleType('m2m100_onnx')\n"
        "package.__path__, package.__version__ = [sys.argv[1]], '0'\n"
        "sys.modules['m2m100_onnx'] = package\n"
        "from m2m100_onnx.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "bad = {'numpy', 'onnxruntime', 'sentencepiece', 'm2m100_onnx_export'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else 0)\n"
    )
    package = str(repository / "runtime" / "m2m100_onnx")
    result = run([sys.executable, "-c", script, package], environment)
    assert (result.returncode, result.stderr) == (0, b"")
    assert all(word in result.stdout for word in (b"translate", b"languages", b"info", b"export"))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"m2m100 {__version__}\n"


def test_a_closed_standard_output_is_told(command: list[str], environment: dict[str, str]) -> None:
    result = run(["sh", "-c", 'exec "$@" >&-', "sh", *command, "Delete"], environment)
    assert result.returncode == 2
    assert result.stderr == b"m2m100: error: standard output is closed\n"


# languages


def test_languages_are_those_the_bundle_was_trained_on(demo_bundle: Path, shell: Shell) -> None:
    trained = ["en", "de", "fr", "es", "ru", "zh"]
    status, output, _ = shell("languages", "--model", str(demo_bundle))
    assert (status, output.decode().split()) == (0, trained)
    found = json.loads(shell("languages", "--model", str(demo_bundle), "--json")[1])
    assert found == [{"code": code, "trained": True} for code in trained]


def test_all_languages_are_those_with_a_token(demo_bundle: Path, shell: Shell) -> None:
    codes = LANGUAGE_CODES["m2m100"]
    lines = shell("languages", "--model", str(demo_bundle), "--all")[1].decode().splitlines()
    assert [line.split("\t")[0] for line in lines] == list(codes)
    assert sum(line.endswith("\tuntrained") for line in lines) == len(codes) - 6
    assert "af\tuntrained" in lines
    found = json.loads(shell("languages", "--model", str(demo_bundle), "--all", "--json")[1])
    assert {"code": "af", "trained": False} in found
    assert [entry["code"] for entry in found] == list(codes)


def test_languages_of_no_bundle(shell: Shell, tmp_path: Path) -> None:
    status, output, errors = shell("languages", "--model", str(tmp_path))
    assert (status, output) == (2, b"")
    assert "is no bundle" in errors


# info


def test_info_tells_what_the_bundle_is(demo_bundle: Path, shell: Shell) -> None:
    status, output, _ = shell("info", str(demo_bundle), "--verify")
    text = output.decode()
    assert status == 0
    for part in ("fp32", "opset", "revision", "en de fr es ru zh", "d_model", "model.onnx_data"):
        assert part in text
    assert "(batch_size, encoder_sequence_length)" in text
    assert "every SHA-256 that of the manifest" in text


def test_info_as_json(demo_bundle: Path, shell: Shell) -> None:
    facts = json.loads(shell("info", str(demo_bundle), "--json")[1])
    bundle = Bundle.open(demo_bundle)
    assert bundle.manifest
    assert facts["manifest"]["languages"] == ["en", "de", "fr", "es", "ru", "zh"]
    assert facts["manifest"]["exporter_version"] == __version__
    assert facts["model"] == asdict(bundle.config)
    assert facts["generation"] == bundle.generation
    assert facts["graphs"] == json.loads(
        json.dumps({name: asdict(graph) for name, graph in bundle.manifest.graphs.items()})
    )
    for name, record in bundle.manifest.files.items():
        assert facts["files"][name] == asdict(record)
    assert facts["total_size"] == sum(path.stat().st_size for path in demo_bundle.iterdir())
    assert facts["verified"] is False


def test_verify_finds_a_flipped_bit(demo_bundle: Path, shell: Shell, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(demo_bundle, copy)
    weights = np.memmap(copy / "model.onnx_data", np.uint8, "r+")
    weights[len(weights) // 2] ^= 1
    weights.flush()
    assert shell("info", str(copy))[0] == 0
    status, output, errors = shell("info", str(copy), "--verify")
    assert (status, output) == (1, b"")
    assert errors.startswith(f"m2m100: error: {copy / 'model.onnx_data'}: expected SHA-256 ")


def test_info_of_a_folder_without_manifest(demo_bundle: Path, shell: Shell, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(demo_bundle, copy)
    (copy / "manifest.json").unlink()
    status, output, _ = shell("info", str(copy))
    assert status == 0
    assert b"manifest: none" in output
    assert b"past_key_values.0.decoder.key" in output
    facts = json.loads(shell("info", str(copy), "--json")[1])
    assert facts["manifest"] is None
    assert facts["files"]["vocab.json"]["sha256"] is None
    status, _, errors = shell("info", str(copy), "--verify")
    assert (status, "no hash to compare" in errors) == (2, True)


# export


def test_export_makes_a_bundle_that_translates(
    answer: str, demo_checkpoint: Path, shell: Shell, tmp_path: Path
) -> None:
    bundle = tmp_path / "made" / "bundle"
    argv = ["export", str(demo_checkpoint), str(bundle), "--no-verify"]
    status, output, errors = shell(*argv, "--languages", "en,fr", "--precision", "fp16")
    lines = output.decode().splitlines()
    size = sum(path.stat().st_size for path in bundle.iterdir())
    assert (status, errors) == (0, "writing weights\nwriting graphs\n")
    assert lines[:2] == [f"bundle: {bundle}", f"size: {size:,} bytes"]
    assert lines[2].startswith("seconds: ")
    assert lines[3:] == ["not verified"]
    assert shell("languages", "--model", str(bundle))[1] == b"en\nfr\n"
    assert shell(*arguments(bundle, "Open the file."))[1] == f"{answer}\n".encode()

    made = {path.name: path.stat().st_mtime_ns for path in bundle.iterdir()}
    status, output, errors = shell(*argv)
    assert (status, output) == (1, b"")
    assert "--overwrite" in errors
    assert {path.name: path.stat().st_mtime_ns for path in bundle.iterdir()} == made
    assert shell(*argv, "--overwrite")[0] == 0
    facts = json.loads(shell("info", str(bundle), "--json")[1])
    assert (facts["precision"], facts["manifest"]["languages"]) == ("fp32", None)


def test_export_verifies_and_prints_what_it_measured(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, object]] = []
    checks = (TranslationCheck("greedy", 6, 5, 1),)
    report = Report({"encoder_model.onnx": 1e-6}, {"encoder_model.onnx": 1e-4}, checks)

    def export(*paths: str, **options: object) -> Export:
        seen.append({"paths": paths, **options})
        return Export(tmp_path, 1.25, 0, report)

    monkeypatch.setattr("m2m100_onnx_export.export", export)
    status, output, _ = shell("export", "some/model", "out", "--revision", "v1")
    assert (status, output.decode().splitlines()[2:]) == (0, ["seconds: 1.2", *report.lines()])
    assert seen[0].pop("progress")
    assert seen == [
        {
            "paths": ("some/model", "out"),
            "precision": "fp32",
            "revision": "v1",
            "languages": None,
            "overwrite": False,
            "verify_outputs": True,
        }
    ]


@pytest.mark.parametrize(
    ("more", "expected_message"),
    [(("--languages", "en,xx"), "unknown language 'xx'"), (("--languages", ""), "language ''")],
)
def test_export_refuses_wrong_languages(
    demo_checkpoint: Path,
    shell: Shell,
    tmp_path: Path,
    more: tuple[str, ...],
    expected_message: str,
) -> None:
    status, _, errors = shell("export", str(demo_checkpoint), str(tmp_path / "bundle"), *more)
    assert status == 2
    assert expected_message in errors
    assert list(tmp_path.iterdir()) == []


def test_export_of_no_checkpoint(shell: Shell, tmp_path: Path) -> None:
    status, _, errors = shell("export", str(tmp_path), str(tmp_path / "bundle"))
    assert status == 2
    assert "is no checkpoint" in errors


@pytest.mark.parametrize("missing", ["torch", "transformers", "onnx", "m2m100_onnx_export"])
def test_export_says_what_to_install(
    missing: str, repository: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    script = (
        "import sys\n"
        "sys.modules[sys.argv[1]] = None\n"
        "from m2m100_onnx.cli import main\n"
        "sys.exit(main(sys.argv[2:]))\n"
    )
    both = f"{environment['PYTHONPATH']}{os.pathsep}{repository / 'export'}"
    argv = [sys.executable, "-c", script, missing, "export", "x/y/z", str(tmp_path / "bundle")]
    result = run(argv, {**environment, "PYTHONPATH": both})
    message = result.stderr.decode()
    assert result.returncode == 2
    assert message.startswith("m2m100: error: ")
    assert message.endswith("run `pip install 'm2m100-onnx[export]'`\n")
    assert missing in message
    assert message.count("\n") == 1
