"""Bundles of the hub, with the real client against a hub on the loopback interface."""

from __future__ import annotations

import logging
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoints import copied
from hub_server import COMMIT, Hub, serve
from m2m100_onnx import BundleError, DependencyError, LanguageModel, Translator
from m2m100_onnx.bundle.bundle import WEIGHTS_FILE
from m2m100_onnx.bundle.hub import locate
from shell import Shell, arguments, run

NAME = "acme/demo"


@pytest.fixture
def hub(demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the demo bundle, and an empty cache."""
    with serve() as hub:
        folder = copied(demo_bundle, tmp_path / "repo")
        (folder / "unwanted.h5").write_bytes(b"unwanted")
        hub.repos[NAME] = folder
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        # What the client has read and not written is lost with the connection.
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


def translation(translator: Translator) -> str:
    return translator.translate("Open the file.", source_lang="en", target_lang="fr")


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_a_bundle_is_downloaded_once(
    hub: Hub, answer: str, demo_bundle: Path, revision: str | None
) -> None:
    with Translator(NAME, revision=revision) as translator:
        assert translator.bundle.directory.name == COMMIT
        assert {p.name for p in translator.bundle.directory.iterdir()} == {
            p.name for p in demo_bundle.iterdir()
        } - {"README.md"}
        translator.bundle.verify()
        found = translation(translator)
        assert found == translation(pickle.loads(pickle.dumps(translator)))
    assert found == translation(Translator(demo_bundle))
    before = len(hub.downloads(WEIGHTS_FILE))
    assert (before, hub.downloads("unwanted.h5")) == (1, [])
    Translator(NAME, revision=revision, lazy=True)
    assert len(hub.downloads(WEIGHTS_FILE)) == before
    assert answer


def test_a_folder_wins(
    hub: Hub, demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "acme").mkdir()
    (tmp_path / NAME).symlink_to(demo_bundle)
    monkeypatch.chdir(tmp_path)
    assert Translator(NAME, lazy=True).bundle.directory == demo_bundle.resolve()
    assert not hub.asked
    with pytest.raises(BundleError, match="a folder has no revisions, found revision 'v1'"):
        Translator(NAME, revision="v1")


def test_language_models_too(hub: Hub, causal_xlm: tuple[Path, Path]) -> None:
    hub.repos["acme/xlm"] = causal_xlm[1]
    opened = LanguageModel("acme/xlm", revision="v1")
    expected = LanguageModel(causal_xlm[1]).score("Open it.", language="en")
    assert opened.score("Open it.", language="en") == expected
    with pytest.raises(BundleError, match="open it with LanguageModel"):
        Translator("acme/xlm")


def test_an_interrupted_download_goes_on(hub: Hub) -> None:
    hub.broken = 1
    Translator(NAME, lazy=True).bundle.verify()
    ranges = [r for _, _, r in hub.asked if r]
    assert len(ranges) == 1
    assert 0 < int(ranges[0].removeprefix("bytes=").removesuffix("-")) <= hub.limit


def test_what_an_interruption_left_is_no_bundle(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.broken, hub.stuck = 10**9, True
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's attempts
    with pytest.raises(BundleError, match=f"{NAME}: .*could not download it from the hub"):
        Translator(NAME)
    # Not even where the hub is away, and all there is comes from the cache.
    hub.broken, hub.status = 0, 503
    with pytest.raises(BundleError, match=f"{NAME}: .*could not download it from the hub"):
        Translator(NAME)
    hub.status = 200
    Translator(NAME, lazy=True).bundle.verify()


@pytest.mark.parametrize("away", ["offline", "error", "gone"])
def test_the_cached_bundle_serves_where_the_hub_is_out_of_reach(
    hub: Hub,
    away: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = translation(Translator(NAME))
    if away == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    elif away == "gone":
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    hub.status = 503
    with caplog.at_level(logging.WARNING, "m2m100_onnx"):
        assert translation(Translator(NAME)) == expected
    warned = [r.getMessage() for r in caplog.records if r.name == "m2m100_onnx"]
    assert ["cached copy" in message for message in warned] == [True] * (away != "offline")
    with pytest.raises(BundleError, match="acme/other"):
        Translator("acme/other")


def test_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "hf_secret"
    with pytest.raises(BundleError, match=f"{NAME}: .*could not download"):
        Translator(NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert Translator(NAME, lazy=True).languages


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("acme/missing", None, "acme/missing: found no such local folder, and could not"),
        (NAME, "v9", "at revision 'v9'"),
        ("acme/checkpoint", None, "this is a checkpoint: run `m2m100 export acme/checkpoint"),
        ("acme/empty", None, "expected a bundle with manifest.json on the hub, found no files"),
        ("a/b/c", None, "expected the folder of an exported bundle, found none"),
        ("./acme/demo", None, "expected the folder of an exported bundle, found none"),
        ("./acme/demo", "v1", "expected the folder of a bundle or a hub id, found neither"),
    ],
)
def test_what_is_not_there(
    hub: Hub, tmp_path: Path, name: str, revision: str | None, message: str
) -> None:
    for repo, files in {"checkpoint": ["model.safetensors"], "empty": []}.items():
        (tmp_path / repo).mkdir()
        for file in files:
            (tmp_path / repo / file).write_bytes(b"")
        hub.repos[f"acme/{repo}"] = tmp_path / repo
    with pytest.raises(BundleError) as caught:
        Translator(name, revision=revision)
    assert message in str(caught.value)


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DependencyError, match=r"acme/demo: .*pip install 'm2m100-onnx\[hub\]'"):
        Translator(NAME)


def test_a_damaged_manifest_on_the_hub(hub: Hub) -> None:
    (hub.repos[NAME] / "manifest.json").write_text("{}")
    with pytest.raises(BundleError, match="expected a format_version"):
        locate(NAME)


def test_commands(hub: Hub, demo_bundle: Path, shell: Shell) -> None:
    expected = shell(*arguments(demo_bundle), stdin=b"Open the file.\n")
    found = shell(*arguments(Path(NAME), "--revision", "v1"), stdin=b"Open the file.\n")
    assert found == expected
    assert shell("languages", "-m", NAME) == shell("languages", "-m", str(demo_bundle))
    assert shell("info", NAME, "--verify")[0] == 0
    assert len(hub.downloads(WEIGHTS_FILE)) == 1
    status, _, errors = shell("info", NAME, "--revision", "v9")
    assert (status, errors.count("\n")) == (2, 1)


def test_a_process_with_the_hub_of_the_environment(
    hub: Hub, command: list[str], environment: dict[str, str], demo_bundle: Path, tmp_path: Path
) -> None:
    there = {
        **environment,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": os.fspath(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    place = command.index(os.fspath(demo_bundle))
    named = [*command[:place], NAME, *command[place + 1 :]]
    found = run(named, there, b"Open the file.\n")
    assert found.returncode == 0, found.stderr
    assert found.stdout == run(command, environment, b"Open the file.\n").stdout
