"""Bundles by their names on the hub, which a server on the loopback interface plays."""

from __future__ import annotations

import contextlib
import json
import logging
import pickle
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import packing
from hub_server import Hub, connect, contents, go_offline, serving
from m2m100_onnx import BundleError, DependencyError, InvalidInputError, LanguageModel, Translator
from m2m100_onnx.bundle.bundle import TOKENIZER_FILES, Bundle
from m2m100_onnx.bundle.folder import WEIGHTS_FILE
from m2m100_onnx.bundle.graphs import GRAPH_FILES
from m2m100_onnx.bundle.hub import locate
from m2m100_onnx.bundle.kinds import open_bundle
from m2m100_onnx.bundle.manifest import MANIFEST_FILE, Manifest

NAME = "acme/tiny"
EN_FR = {"source_lang": "en", "target_lang": "fr"}


@pytest.fixture(scope="module")
def files(tiny_bundle: Path) -> dict[str, bytes]:
    return contents(tiny_bundle)


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


@pytest.fixture
def hub(
    server: Hub, files: Mapping[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Hub:
    """A hub with one bundle, and a new cache."""
    server.repositories.clear()
    server.cuts.clear()
    server.status = None
    server.take()
    server.add(NAME, files)
    connect(server.url, tmp_path / "hub", monkeypatch)
    return server


def cache(tmp_path: Path, name: str = NAME) -> Path:
    return tmp_path / "hub" / f"models--{name.replace('/', '--')}"


def test_a_name_translates_as_the_folder_does(hub: Hub, tiny_bundle: Path, tmp_path: Path) -> None:
    unwanted = ("README.md", "tf_model.h5", "model.safetensors", "onnx/model.onnx", "vocab.txt")
    hub.repositories[NAME].commit(contents(tiny_bundle) | dict.fromkeys(unwanted, b"unwanted"))
    translator = Translator(NAME)
    found = translator.translate("Open the file.", **EN_FR)
    assert found == Translator(tiny_bundle).translate("Open the file.", **EN_FR)
    assert hub.take()[0] == {path.name for path in tiny_bundle.iterdir()} - {"README.md"}
    # The layout of the hub's own cache: the folder is one of links.
    folder = cache(tmp_path) / "snapshots" / hub.repositories[NAME].names["main"]
    assert translator.bundle.directory == folder.resolve()
    assert (folder / WEIGHTS_FILE).is_symlink()
    translator.bundle.verify()
    # What is there is not sent again.
    Translator(NAME, lazy=True)
    sent, requests = hub.take()
    assert sent == set()
    assert requests <= 2


def test_language_models(hub: Hub, causal_xlm: tuple[Path, Path]) -> None:
    hub.add("acme/xlm", contents(causal_xlm[1]))
    ids, langs = [[5, 6, 7]], [[0, 0, 0]]
    found = LanguageModel("acme/xlm").logits(ids, langs)
    assert (found == LanguageModel(causal_xlm[1]).logits(ids, langs)).all()
    assert open_bundle("acme/xlm").manifest == open_bundle(causal_xlm[1]).manifest
    with pytest.raises(BundleError, match=r"open it with LanguageModel"):
        Translator("acme/xlm")


def test_a_folder_of_optimum_has_no_manifest(hub: Hub, tiny_bundle: Path) -> None:
    """It has merged and quantized graphs beside the three, and their weights in other files."""
    wanted = {"config.json", "generation_config.json", WEIGHTS_FILE, *TOKENIZER_FILES, *GRAPH_FILES}
    kept = {n: data for n, data in contents(tiny_bundle).items() if n in wanted}
    kept["encoder_model.onnx_data"] = b"of a larger model"
    merged = ("decoder_model_merged.onnx", "decoder_model_merged.onnx_data", "model_fp16.onnx")
    hub.add("acme/optimum", kept | dict.fromkeys(merged, b"unwanted"))
    translator = Translator("acme/optimum")
    assert hub.take()[0] == set(kept)
    assert translator.bundle.manifest is None
    found = translator.translate("Open the file.", **EN_FR)
    assert found == Translator(tiny_bundle, fused=False).translate("Open the file.", **EN_FR)


# --- Revisions -----------------------------------------------------------------------------------


def test_revisions(hub: Hub, bundle: Path) -> None:
    first = hub.repositories[NAME].names["main"]
    (bundle / "manifest.json").write_text((bundle / "manifest.json").read_text() + "\n")
    second = hub.repositories[NAME].commit(contents(bundle), "v2", "refs/pr/1")
    for revision, commit in {None: first, "main": first, "v2": second, "refs/pr/1": second}.items():
        assert locate(NAME, revision).name == commit
        assert Translator(NAME, revision=revision, lazy=True).bundle.directory.name == commit
    hub.take()
    # A commit never changes, so nothing is asked.
    assert locate(NAME, second).name == second
    assert hub.take() == (set(), 0)
    # A branch moves.
    hub.repositories[NAME].names["main"] = second
    assert locate(NAME).name == second
    assert locate(NAME, first).name == first


def test_a_commit_that_is_not_whole_is_asked_for(hub: Hub, tmp_path: Path) -> None:
    commit = hub.repositories[NAME].names["main"]
    (locate(NAME) / WEIGHTS_FILE).unlink()
    shutil.rmtree(cache(tmp_path) / "blobs")
    hub.take()
    assert locate(NAME, commit).name == commit
    assert WEIGHTS_FILE in hub.take()[0]


def test_a_branch_that_moves_during_the_download(
    hub: Hub, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files are of one commit, and the list of files too."""
    import huggingface_hub

    manifest = Manifest.read(bundle)
    (bundle / "vocabulary.npz").unlink()
    raw = json.loads((bundle / MANIFEST_FILE).read_text())
    del raw["files"]["vocabulary.npz"]
    (bundle / MANIFEST_FILE).write_text(json.dumps(raw))
    assert "vocabulary.npz" in manifest.files
    real = huggingface_hub.HfApi.model_info

    def moving(self: Any, *given: Any, **named: Any) -> Any:
        found = real(self, *given, **named)
        hub.repositories[NAME].names["main"] = commit
        return found

    commit = hub.repositories[NAME].commit(contents(bundle), "next")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", moving)
    folder = locate(NAME)
    assert folder.name == commit
    expected = {path.name for path in bundle.iterdir()} - {"README.md"}
    assert {path.name for path in folder.iterdir()} == expected


# --- Without the hub -----------------------------------------------------------------------------


@pytest.fixture(params=["offline", "no server", "broken server", "too many requests"])
def away(hub: Hub, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts the hub out of reach, when it is called; returns whether that deserves a warning."""

    def leave() -> bool:
        if request.param == "offline":
            go_offline(monkeypatch)
        elif request.param == "no server":
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        else:
            hub.status = 503 if request.param == "broken server" else 429
        return bool(request.param != "offline")

    return leave


def test_the_cached_copy_serves(hub: Hub, away: Any, caplog: pytest.LogCaptureFixture) -> None:
    folder = locate(NAME)
    assert hub.take()[0]
    warns = away()
    with caplog.at_level(logging.WARNING, "m2m100_onnx"):
        assert Translator(NAME, lazy=True).bundle.directory == folder.resolve()
    warned = [record.getMessage() for record in caplog.records if record.name == "m2m100_onnx"]
    assert [str(folder) in message for message in warned] == [True] * warns
    assert locate(NAME, folder.name) == folder
    for name, revision in (("acme/other", None), (NAME, "v2"), (NAME, "0" * 40)):
        with pytest.raises(BundleError, match=f"{name}: found no such local folder, and could not"):
            locate(name, revision)


def test_half_a_copy_does_not_serve(away: Any) -> None:
    """As an interrupted download leaves it: the manifest is there, and the weights are not."""
    (locate(NAME) / WEIGHTS_FILE).unlink()
    away()
    with pytest.raises(BundleError, match=r"acme/tiny: .*could not download it from the hub"):
        locate(NAME)


# --- Interruptions -------------------------------------------------------------------------------


def test_a_download_that_breaks_off_resumes(
    hub: Hub, files: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 14)
    hub.cuts[WEIGHTS_FILE] = 100_000
    with contextlib.suppress(
        BundleError
    ):  # Versions before 1 of the client go on at the next call.
        locate(NAME)
    folder = locate(NAME)
    starts = [start for name, start in hub.sent if name == WEIGHTS_FILE]
    # The client reads in pieces, and asks for what follows the last whole one.
    assert starts[0] == 0
    assert 0 < starts[1] <= 100_000
    assert (folder / WEIGHTS_FILE).read_bytes() == files[WEIGHTS_FILE]


@pytest.mark.parametrize("wanted", ["secret", "none"])
def test_tokens(hub: Hub, monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    hub.repositories[NAME].token = "secret"
    if wanted == "secret":
        monkeypatch.setenv("HF_TOKEN", "secret")
        assert locate(NAME).is_dir()
        asked = {
            (r.path.startswith("/large/"), r.headers.get("authorization")) for r in hub.requests
        }
        # The host of large files gets no token.
        assert asked == {(False, "Bearer secret"), (True, None)}
    else:
        with pytest.raises(BundleError, match=r"it is private; if so, set HF_TOKEN or run `hf"):
            locate(NAME)


# --- What is refused -----------------------------------------------------------------------------


def test_gated(hub: Hub) -> None:
    locate(NAME)
    hub.repositories[NAME].token, hub.repositories[NAME].gated = "secret", True
    # The copy of a bundle that was withdrawn does not serve.
    with pytest.raises(BundleError, match=r"access is restricted; ask for it .* set HF_TOKEN"):
        locate(NAME)


def test_what_the_hub_does_not_have(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"acme/none: .*there is no such repository"):
        Translator("acme/none")
    with pytest.raises(BundleError, match=r"at revision 'v9': the repository has no such revision"):
        Translator(NAME, revision="v9")
    with pytest.raises(BundleError, match=r"acme/mo del: .*Repo id must use"):
        Translator("acme/mo del")
    assert not hub.sent
    assert not (tmp_path / "hub").exists()


def test_what_is_no_bundle(hub: Hub, files: Mapping[str, bytes]) -> None:
    hub.add("acme/checkpoint", {"config.json": b"{}", "model.safetensors": b"", "README.md": b""})
    with pytest.raises(BundleError, match=r"m2m100 export acme/checkpoint FOLDER"):
        Translator("acme/checkpoint")
    hub.add("acme/parts", {"config.json": b"{}"} | {f"int8/{n}": d for n, d in files.items()})
    with pytest.raises(BundleError, match=r"found bundles in int8/; download the folder of one"):
        Translator("acme/parts")
    hub.add("acme/empty", {})
    with pytest.raises(BundleError, match=r"expected manifest\.json or graphs .*, found no files"):
        Translator("acme/empty")
    bare = {name: data for name, data in files.items() if name != "config.json"}
    hub.add("acme/bare", bare)
    with pytest.raises(BundleError, match=r"acme/bare: expected config\.json in the repository"):
        Translator("acme/bare")
    assert not hub.sent


def test_the_manifest_is_read_before_the_weights_come(hub: Hub, files: Mapping[str, bytes]) -> None:
    lacking = {name: data for name, data in files.items() if name != "vocabulary.npz"}
    hub.add("acme/lacking", lacking)
    with pytest.raises(BundleError, match=r"acme/lacking: .*found none of vocabulary\.npz"):
        Translator("acme/lacking")
    manifest = json.loads(files[MANIFEST_FILE])
    newer = json.dumps({**manifest, "format_version": 99}).encode()
    hub.add("acme/newer", {**files, MANIFEST_FILE: newer})
    with pytest.raises(BundleError, match=r"format version 99"):
        Translator("acme/newer")
    outside = {**manifest["files"], "../../evil": manifest["files"][WEIGHTS_FILE]}
    data = json.dumps({**manifest, "files": outside}).encode()
    hub.add("acme/evil", {**files, MANIFEST_FILE: data, "../../evil": b"evil"})
    with pytest.raises(BundleError, match=r"expected the name of a file of the bundle"):
        Translator("acme/evil")
    assert {name for name, _ in hub.sent} == {MANIFEST_FILE, "config.json"}


def test_a_file_of_another_size_than_the_manifest_says(
    hub: Hub, files: Mapping[str, bytes]
) -> None:
    hub.add("acme/mixed", {**files, WEIGHTS_FILE: files[WEIGHTS_FILE][:-1]})
    with pytest.raises(BundleError, match=rf"{WEIGHTS_FILE}: expected [\d,]+ bytes, found"):
        Translator("acme/mixed")


def test_without_the_client(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DependencyError, match=r"acme/tiny: .*pip install 'm2m100-onnx\[hub\]'"):
        Translator(NAME)
    # Folders need no client.
    assert Translator(tiny_bundle, lazy=True).languages


def test_a_folder_wins(
    hub: Hub, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("acme").mkdir()
    bundle.rename("acme/tiny")
    assert Translator(NAME, lazy=True).bundle.directory == tmp_path / "acme" / "tiny"
    with pytest.raises(BundleError, match=r"acme/tiny: a folder has no revisions, found .*'v1'"):
        Translator(NAME, revision="v1")
    Path("acme/file").touch()
    # A path is never a name, nor is what starts or is laid out as none.
    for name in (Path("acme/none"), "acme/file", "./acme/none", "none", "a/b/c", "/acme/none"):
        with pytest.raises(BundleError, match=r"none|file|c: expected the folder of an exported"):
            Translator(name)
    assert not hub.requests


@pytest.mark.parametrize("revision", ["", 1, b"main"], ids=repr)
def test_what_is_no_revision(hub: Hub, tiny_bundle: Path, revision: Any) -> None:
    for bundle in (NAME, tiny_bundle):
        with pytest.raises(InvalidInputError, match=r"revision: expected a branch, tag or commit"):
            Translator(bundle, revision=revision)
    assert not hub.requests


def test_an_open_bundle_has_no_revision(tiny_bundle: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"revision: expected None for a bundle that is op"):
        Translator(Bundle.open(tiny_bundle), revision="v1")


# --- What follows from the folder of links -------------------------------------------------------


def test_a_pickled_translator_asks_nothing(hub: Hub, tmp_path: Path) -> None:
    translator = Translator(NAME, lazy=True)
    data = pickle.dumps(translator)
    hub.take()
    again = pickle.loads(data)
    assert again.bundle == translator.bundle
    assert again.translate("Quit", **EN_FR) == translator.translate("Quit", **EN_FR)
    assert not hub.requests
    shutil.rmtree(cache(tmp_path) / "snapshots")
    with pytest.raises(BundleError, match=r"expected the folder of an exported bundle, found none"):
        pickle.loads(data)


def test_the_weights_cache(
    hub: Hub, packed_bundle: Path, unpacked_tokens: list[Any], tmp_path: Path
) -> None:
    hub.add("acme/packed", contents(packed_bundle))
    weights = tmp_path / "weights"
    folder = locate("acme/packed")
    for _ in range(2):
        assert packing.tokens(folder, weights) == unpacked_tokens
        assert len([*weights.glob("*")]) > 0
    # Another download of the same bundle shares the entries, which are known by hashes.
    before = sorted(weights.iterdir())
    hub.add("acme/copy", contents(packed_bundle))
    assert packing.tokens(locate("acme/copy"), weights) == unpacked_tokens
    assert sorted(weights.iterdir()) == before
