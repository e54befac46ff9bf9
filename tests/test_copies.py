"""Translators that are copied, pickled and sent to other processes."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from m2m100_onnx import BundleError, Cancellation, Stats, Translator
from m2m100_onnx.bundle.bundle import Bundle
from translations import EN_DE, GREEDY

PICKLED = [
    pytest.param(partial(pickle.dumps, protocol=protocol), id=f"protocol {protocol}")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
]
COPIES: list[Callable[[Translator], Translator]] = [
    copy.copy,
    copy.deepcopy,
    lambda one: pickle.loads(pickle.dumps(one)),
]


@pytest.mark.parametrize("dump", PICKLED)
def test_every_protocol(translator: Translator, dump: Callable[[Translator], bytes]) -> None:
    data = dump(translator)
    # A bundle's place, not its weights.
    assert len(data) < 2000
    again = pickle.loads(data)
    assert again.bundle == translator.bundle
    assert again.translate("Quit", **GREEDY) == translator.translate("Quit", **GREEDY)


@pytest.mark.parametrize("again", COPIES, ids=["copy", "deepcopy", "pickle"])
def test_a_copy_has_the_arguments_and_opens_lazily(
    demo_bundle: Path, tmp_path: Path, again: Callable[[Translator], Translator]
) -> None:
    arguments: dict[str, Any] = {
        "device": "cpu",
        "intra_op_num_threads": 1,
        "providers": [("CPUExecutionProvider", {})],
        "session_options": {"session.intra_op.allow_spinning": "0"},
        "fused": False,
        "kernels": False,
        "kv_cache_dtype": "float32",
        "sp_model_kwargs": {"enable_sampling": False},
        "cache_dir": tmp_path / "cache",
    }
    first = Translator(Bundle.open(demo_bundle), **arguments)
    second = again(first)
    assert second is not first
    assert second._arguments == arguments
    assert (repr(second), second.model.threads, second.model.fused) == (repr(first), 1, False)
    assert second.model.sessions._sessions == {}
    first.close()
    assert second.translate("Quit", **GREEDY) == again(first).translate("Quit", **GREEDY)


def translate(translator: Translator, text: str) -> str:
    return translator.translate(text, **EN_DE)


def test_a_spawned_process_opens_its_own(translator: Translator) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = pool.submit(translate, translator, "Open the file.").result(120)
    assert found == translator.translate("Open the file.", **EN_DE)


def test_a_bundle_in_another_place_is_no_longer_found(bundle: Path) -> None:
    data = pickle.dumps(Translator(bundle, lazy=True))
    bundle.rename(bundle.with_name("moved"))
    with pytest.raises(BundleError, match=r"bundle: expected the folder of an exported bundle"):
        pickle.loads(data)


def test_another_bundle_in_its_place_is_refused(bundle: Path, demo_bundle: Path) -> None:
    translator = Translator(bundle, lazy=True)
    data = pickle.dumps(translator)
    shutil.rmtree(bundle)
    shutil.copytree(demo_bundle, bundle)
    for again in (lambda: pickle.loads(data), lambda: copy.deepcopy(translator)):
        with pytest.raises(BundleError, match=r"is not the bundle that .* Translator had open"):
            again()


def test_the_same_bundle_in_its_place_is_taken(bundle: Path, tmp_path: Path) -> None:
    """As on another machine: copied, with other times."""
    data = pickle.dumps(Translator(bundle, lazy=True))
    shutil.copytree(bundle, tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(bundle)
    (tmp_path / "copy").rename(bundle)
    assert pickle.loads(data).translate("Quit", **GREEDY)


def test_a_bundle_without_a_manifest_is_known_by_its_sizes(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()
    data = pickle.dumps(Translator(bundle, lazy=True))
    assert pickle.loads(data).bundle.manifest is None
    with (bundle / "encoder_model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BundleError, match="is not the bundle"):
        pickle.loads(data)


def test_stats_are_plain(translator: Translator) -> None:
    stats = Stats()
    translator.translate("Quit", **GREEDY, stats=stats)
    assert pickle.loads(pickle.dumps(stats)) == copy.deepcopy(stats) == stats
    assert json.loads(json.dumps(vars(stats)))["texts"] == 1


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_cancellation_says_why_it_stays(again: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="a Cancellation reaches the calls of its own process"):
        again(Cancellation())
