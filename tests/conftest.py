"""Fixtures that the test files share: the demo checkpoint, and bundles exported from it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import M2M100Config, M2M100ForConditionalGeneration, M2M100Tokenizer

import packing
import xlm
from checkpoints import randomise
from m2m100_onnx import Translator
from m2m100_onnx.bundle.bundle import TOKENIZER_FILES
from m2m100_onnx.bundle.graphs import Precision
from m2m100_onnx.model.model import Model
from m2m100_onnx.text.tokenizer import Tokenizer
from m2m100_onnx_export import export
from shell import Shell, arguments
from tokenization import DEMO, FILES, MODEL
from translations import GRAPHS, need_kernels

# Tests write nothing to the user's home. Tests of the cache name a folder.
os.environ["M2M100_ONNX_CACHE"] = "off"

# These run in an environment of their own, without torch: see scripts/test.
collect_ignore = ["jobs"]

NATIVE_PRECISIONS: tuple[Precision, ...] = ("int8", "int4", "int4-int8")
LANGUAGES = ("en", "de", "fr", "es", "ru", "zh")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def demo_checkpoint(repository: Path) -> Path:
    """The demo checkpoint: six trained languages, all hundred language tokens."""
    return repository / "demo" / "model"


@pytest.fixture(scope="session")
def torch_model(demo_checkpoint: Path) -> M2M100ForConditionalGeneration:
    """The demo checkpoint in PyTorch, in float32; it is stored in float16."""
    model = M2M100ForConditionalGeneration.from_pretrained(demo_checkpoint, dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="session")
def demo_bundle(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint as an fp32 bundle; tests must not change it."""
    bundle = tmp_path_factory.mktemp("bundles") / "demo"
    export(demo_checkpoint, bundle, languages=LANGUAGES, verify_outputs=False)
    return bundle


@pytest.fixture(scope="session")
def demo_bundle_fp16(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint as an fp16 bundle; tests must not change it."""
    bundle = tmp_path_factory.mktemp("bundles") / "demo-fp16"
    export(demo_checkpoint, bundle, precision="fp16", languages=LANGUAGES, verify_outputs=False)
    return bundle


@pytest.fixture(params=["fp32", "fp16"])
def precision(request: pytest.FixtureRequest) -> Precision:
    value: Precision = request.param
    return value


@pytest.fixture
def demo(precision: Precision, demo_bundle: Path, demo_bundle_fp16: Path) -> Path:
    """The demo bundle of the test's precision. int8 and int4 have tests of their own."""
    return demo_bundle if precision == "fp32" else demo_bundle_fp16


@pytest.fixture(params=GRAPHS)
def graphs(request: pytest.FixtureRequest) -> dict[str, bool]:
    """The arguments that choose a set of graphs, for bundles of eight and four bits."""
    name: str = request.param
    if name == "native":
        need_kernels()
    return GRAPHS[name]


@pytest.fixture(scope="session")
def translator(demo_bundle: Path) -> Translator:
    """A translator over the fp32 demo bundle."""
    # The model is so small that a second thread makes it slower.
    return Translator(demo_bundle, intra_op_num_threads=1)


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """Keeps PyTorch's threads from spinning against those of onnxruntime, which costs minutes."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_checkpoint(
    demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Makes tiny random checkpoints with the demo's tokenizer. Arguments go to the config."""

    def make(**config: Any) -> Path:
        torch.manual_seed(len(config))
        facts = {
            "vocab_size": 10609,
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 64,
            "max_position_embeddings": 64,
            # Large enough that the layers change the result of the embeddings.
            "init_std": 0.3,
        }
        model = randomise(M2M100ForConditionalGeneration(M2M100Config(**{**facts, **config})))
        folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
        model.save_pretrained(folder)
        for name in TOKENIZER_FILES:
            if (demo_checkpoint / name).exists():
                shutil.copyfile(demo_checkpoint / name, folder / name)
        generation = {"num_beams": 2, "max_length": 8, "decoder_start_token_id": 2}
        (folder / "generation_config.json").write_text(json.dumps(generation))
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    """A random checkpoint of 1.5 MB; tests must not change it."""
    return make_checkpoint()


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random checkpoint as an fp32 bundle; tests must not change it."""
    bundle = tmp_path_factory.mktemp("bundles") / "tiny"
    export(tiny_checkpoint, bundle, verify_outputs=False)
    return bundle


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_bundle` that the test may change."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def packed_bundle(
    make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An int8 bundle with matrices large enough to be stored outside the graph and packed."""
    checkpoint = make_checkpoint(d_model=64, encoder_ffn_dim=256, decoder_ffn_dim=256)
    target = tmp_path_factory.mktemp("bundles") / "packed"
    export(checkpoint, target, precision="int8", verify_outputs=False)
    return target


@pytest.fixture(scope="session")
def unpacked_tokens(packed_bundle: Path) -> list[tuple[int, ...]]:
    """The tokens that `packed_bundle` gives without a cache."""
    found = packing.tokens(packed_bundle, False)
    assert all(len(row) > 3 for row in found)
    return found


@pytest.fixture(scope="session")
def filled_cache(packed_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the packed graphs of `packed_bundle`; tests must not change it."""
    cache = tmp_path_factory.mktemp("caches") / "filled"
    packing.tokens(packed_bundle, cache)
    return cache


@pytest.fixture
def packed_cache(filled_cache: Path, tmp_path: Path) -> Path:
    """A copy of the filled cache that a test may damage. It keeps the modification times."""
    return Path(shutil.copytree(filled_cache, tmp_path / "cache"))


@pytest.fixture(scope="session")
def environment(repository: Path) -> dict[str, str]:
    """The environment of a service: it has the runtime and not the exporter."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "PYTHONPATH": str(repository / "runtime")}


@pytest.fixture(scope="session")
def command(demo_bundle: Path) -> list[str]:
    """The command line of `translate` with its required arguments, in a new process."""
    return [sys.executable, "-m", "m2m100_onnx", *arguments(demo_bundle)]


@pytest.fixture(scope="session")
def answer(translator: Translator) -> str:
    """The library's French translation of "Open the file."; the command must print the same."""
    return translator.translate("Open the file.", source_lang="en", target_lang="fr")


@pytest.fixture
def shell(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Runs the command in this process."""
    return Shell(capfdbinary, monkeypatch)


@pytest.fixture(scope="session")
def sentences(repository: Path) -> list[str]:
    """English test sentences, from 6 to 22 words."""
    path = repository / "demo" / "heldout" / "test.en"
    return path.read_text(encoding="utf-8").splitlines()[:40]


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shapes of all batches that the model received."""
    shapes: list[tuple[int, int]] = []
    real = Model.begin

    def start(
        self: Model, input_ids: Any, attention_mask: Any, prompt: Any, *, serial: bool = False
    ) -> Any:
        assert input_ids.shape == attention_mask.shape
        assert prompt.shape == (len(input_ids), 2)
        shapes.append(input_ids.shape)
        return real(self, input_ids, attention_mask, prompt, serial=serial)

    monkeypatch.setattr(Model, "begin", start)
    return shapes


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The runtime's tokenizer of the demo."""
    return Tokenizer(MODEL)


@pytest.fixture(scope="session")
def reference() -> M2M100Tokenizer:
    """The tokenizer of transformers for the demo."""
    return M2M100Tokenizer.from_pretrained(MODEL)


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    """A copy of the tokenizer files that a test may break."""
    for name in FILES:
        shutil.copy(MODEL / name, tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def xlm_words() -> list[str]:
    return [
        line
        for code in ("en", "de")
        for line in (DEMO / "heldout" / f"dev.{code}").read_text("utf-8").split("\n")
    ]


@pytest.fixture(scope="session")
def make_xlm(
    xlm_words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, Path]]:
    """Makes a checkpoint and its bundle; equal arguments give the same folders."""
    checkpoints: dict[str, Path] = {}
    bundles: dict[Path, Path] = {}

    def make(precision: Any = "fp32", **config: Any) -> tuple[Path, Path]:
        key = str(config)
        if key not in checkpoints:
            folder = tmp_path_factory.mktemp("xlm") / "checkpoint"
            checkpoints[key] = xlm.make_checkpoint(folder, words=xlm.VOCABULARY - 14, **config)
            xlm.write_vocabulary(folder, xlm_words, xlm.VOCABULARY)
        bundle = checkpoints[key].parent / precision
        if bundle not in bundles:
            bundles[bundle] = export(checkpoints[key], bundle, precision=precision).bundle
        return checkpoints[key], bundle

    return make


@pytest.fixture(scope="session")
def causal_xlm(make_xlm: Callable[..., tuple[Path, Path]]) -> tuple[Path, Path]:
    return make_xlm()


@pytest.fixture(scope="session")
def masked_xlm(make_xlm: Callable[..., tuple[Path, Path]]) -> tuple[Path, Path]:
    return make_xlm(causal=False)


@pytest.fixture(scope="session")
def native_bundles(
    demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The demo bundles that have native graphs, by precision."""
    found: dict[str, Path] = {}
    for precision in NATIVE_PRECISIONS:
        found[precision] = tmp_path_factory.mktemp(precision) / "demo"
        export(
            demo_checkpoint,
            found[precision],
            precision=precision,
            languages=LANGUAGES,
            verify_outputs=False,
        )
    return found


@pytest.fixture(params=NATIVE_PRECISIONS)
def native_bundle(request: pytest.FixtureRequest, native_bundles: dict[str, Path]) -> Path:
    """Each of the demo bundles that have native graphs."""
    return native_bundles[request.param]
