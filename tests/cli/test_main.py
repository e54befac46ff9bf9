"""The command as a user runs it: what it imports, languages, info and export."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from m2m100_onnx import Bundle, __version__
from m2m100_onnx.bundle.families import FAMILIES
from m2m100_onnx.cli.main import main
from m2m100_onnx_export import Export
from m2m100_onnx_export.verify import Report
from m2m100_onnx_export.verify_translations import TranslationCheck
from shell import Shell, arguments, run

# What a service installs


def test_translating_needs_the_runtime_alone(
    answer: str, demo_bundle: Path, environment: dict[str, str]
) -> None:
    script = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'onnx'): sys.modules[name] = None\n"
        "from m2m100_onnx.cli.main import main\n"
        "status = main(sys.argv[1:])\n"
        "bad = {'m2m100_onnx_export', 'safetensors', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else status)\n"
    )
    argv = [sys.executable, "-c", script, *arguments(demo_bundle, "Open the file.")]
    result = run(argv, environment)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == f"{answer}\n".encode()


@pytest.mark.parametrize("argv", ["--help", "translate --help", "benchmark --help"])
def test_help_imports_nothing_heavy(argv: str, environment: dict[str, str]) -> None:
    script = (
        "import sys\n"
        "from m2m100_onnx.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'numpy', 'onnxruntime', 'sentencepiece', 'rich', 'matplotlib', 'shtab',\n"
        "  'subprocess', 'm2m100_onnx_export'}\n"
        "sys.exit(f'imported {heavy & set(sys.modules)}' if heavy & set(sys.modules) else 0)\n"
    )
    result = run([sys.executable, "-c", script, *argv.split()], environment)
    assert (result.returncode, result.stderr) == (0, b"")
    if argv == "--help":
        assert all(word in result.stdout for word in (b"translate", b"languages", b"info"))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"m2m100 {__version__}\n"


def test_a_closed_standard_output_is_an_error(
    command: list[str], environment: dict[str, str]
) -> None:
    result = run(["sh", "-c", 'exec "$@" >&-', "sh", *command, "Delete"], environment)
    assert result.returncode == 2
    assert result.stderr == b"m2m100: error: standard output is closed\n"


# completion


@pytest.mark.parametrize("name", ["bash", "zsh", "tcsh"])
def test_completion_knows_commands_and_flags(shell: Shell, name: str) -> None:
    status, output, errors = shell("completion", name)
    assert (status, errors) == (0, "")
    for word in (
        "translate",
        "languages",
        "--beam-size" if name == "bash" else "beam-size",
        "int8",
    ):
        assert word in output.decode()


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes_flags_and_choices(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "completion").write_bytes(shell("completion", "bash")[1])
    (tmp_path / "folder").mkdir()
    script = (
        'cd "$1"; . ./completion; '
        'complete_words() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); '
        '_shtab_m2m100 m2m100 "${COMP_WORDS[COMP_CWORD]}"; echo "${COMPREPLY[@]}"; }; '
        "complete_words m2m100 la; complete_words m2m100 translate --num-h; "
        "complete_words m2m100 translate --early-stopping ne; "
        "complete_words m2m100 translate --model f"
    )
    done = subprocess.run(
        ["bash", "-c", script, "bash", str(tmp_path)], capture_output=True, check=True, text=True
    )
    assert done.stdout.split() == ["languages", "--num-hypotheses", "never", "folder"]


def test_completion_without_shtab_says_what_to_install(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    status, output, errors = shell("completion", "bash")
    assert (status, output) == (2, b"")
    assert errors.endswith("run `pip install 'm2m100-onnx[cli]'`\n")


# languages


def test_languages_are_those_the_bundle_was_trained_on(demo_bundle: Path, shell: Shell) -> None:
    trained = ["en", "de", "fr", "es", "ru", "zh"]
    status, output, _ = shell("languages", "--model", str(demo_bundle))
    assert (status, output.decode().split()) == (0, trained)
    found = json.loads(shell("languages", "--model", str(demo_bundle), "--json")[1])
    assert [(entry["code"], entry["trained"]) for entry in found] == [(c, True) for c in trained]
    assert found[1]["name"] == "German"


def test_all_languages_are_those_with_a_token(demo_bundle: Path, shell: Shell) -> None:
    codes = FAMILIES["m2m100"].languages
    lines = shell("languages", "--model", str(demo_bundle), "--all")[1].decode().splitlines()
    assert [line.split("\t")[0] for line in lines] == list(codes)
    assert sum(line.endswith("\tuntrained") for line in lines) == len(codes) - 6
    assert "af\tuntrained" in lines
    found = json.loads(shell("languages", "--model", str(demo_bundle), "--all", "--json")[1])
    assert {"code": "af", "name": "Afrikaans", "trained": False} in found
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
    assert "each with the SHA-256 of the manifest" in text


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
            "family": None,
            "causal": None,
            "adapter": None,
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
        "from m2m100_onnx.cli.main import main\n"
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
