"""Embeddings of their own for encoder, decoder and LM head, and learned positions.

transformers reads untied embeddings. It has no learned positions: the reference there is its model
with another module in their place.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import M2M100ForConditionalGeneration, M2M100Tokenizer

from checkpoints import SAFETENSORS, copied, tree
from m2m100_onnx import BundleError, Translator
from m2m100_onnx_export import export

SHARED = "model.shared.weight"
EMBEDDINGS = {
    "encoder": "model.encoder.embed_tokens.weight",
    "decoder": "model.decoder.embed_tokens.weight",
    "head": "lm_head.weight",
}
POSITIONS = {side: f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")}
TEXTS = ["Open the file and save a copy before you close the window.", "Close it.", "No."]
ROW = 32 * 4  # bytes of a row of the tiny checkpoint's embedding


def load(checkpoint: Path) -> Any:
    return M2M100ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()


def changed(checkpoint: Path, folder: Path, names: list[str], scale: float = 0.5) -> Path:
    """Copies a checkpoint and gives tensors numbers of their own."""
    copied(checkpoint, folder)
    state = load_file(folder / SAFETENSORS)
    torch.manual_seed(3)
    for name in names:
        table = state[name]
        state[name] = table + torch.randn(table.shape) * scale * table.std()
    save_file(state, folder / SAFETENSORS, {"format": "pt"})
    return folder


def check_translations(bundle: Path, checkpoint: Path, model: Any) -> None:
    """Both kinds of graphs find the tokens of a model, greedily and with beams."""
    tokenizer = M2M100Tokenizer.from_pretrained(checkpoint, src_lang="en")
    for fused in (True, False):
        with Translator(bundle, fused=fused, intra_op_num_threads=1) as translator:
            for beams in (1, 4):
                options = {"max_length": 20, "early_stopping": beams > 1, "length_penalty": 1.0}
                found = translator.translate_batch(
                    TEXTS, source_lang="en", target_lang="de", beam_size=beams, **options
                )
                for text, ours in zip(TEXTS, found, strict=True):
                    theirs = model.generate(
                        **tokenizer(text, return_tensors="pt"),
                        forced_bos_token_id=tokenizer.get_lang_id("de"),
                        num_beams=beams,
                        **options,
                    )
                    assert list(ours.tokens) == theirs[0].tolist()


# --- Embeddings ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def untied(make_checkpoint: Callable[..., Path]) -> Path:
    """Encoder and decoder store the numbers of the shared embedding; the head has its own."""
    checkpoint = make_checkpoint(tie_word_embeddings=False)
    state = load_file(checkpoint / SAFETENSORS)
    for side in ("encoder", "decoder"):  # transformers 4 stores no equal tensors
        state[EMBEDDINGS[side]] = state[SHARED].clone()
    save_file(state, checkpoint / SAFETENSORS, {"format": "pt"})
    return checkpoint


@pytest.mark.parametrize(
    "own",
    [["encoder"], ["decoder"], ["encoder", "decoder"], ["encoder", "decoder", "head"]],
    ids="-".join,
)
def test_untied_embeddings(untied: Path, tmp_path: Path, own: list[str]) -> None:
    """Each part reads its numbers; with the head's there are three tables in each case."""
    checkpoint = changed(untied, tmp_path / "checkpoint", [EMBEDDINGS[part] for part in own])
    done = export(checkpoint, tmp_path / "bundle")
    assert done.report is not None
    check_translations(done.bundle, checkpoint, load(checkpoint))
    plain = export(untied, tmp_path / "plain", verify_outputs=False)
    assert done.weight_bytes - plain.weight_bytes == pytest.approx(10609 * ROW, abs=4096)


def test_an_encoder_with_its_own(untied: Path, tmp_path: Path) -> None:
    """Decoder and head share theirs, which is stored once."""
    checkpoint = copied(untied, tmp_path / "checkpoint")
    state = load_file(checkpoint / SAFETENSORS)
    state[EMBEDDINGS["decoder"]] = state[EMBEDDINGS["head"]].clone()
    save_file(state, checkpoint / SAFETENSORS, {"format": "pt"})
    done = export(checkpoint, tmp_path / "bundle")
    check_translations(done.bundle, checkpoint, load(checkpoint))
    plain = export(untied, tmp_path / "plain", verify_outputs=False)
    assert done.weight_bytes == pytest.approx(plain.weight_bytes, abs=4096)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4", "int4-int8"])
def test_untied_embeddings_in_fewer_bits(untied: Path, tmp_path: Path, precision: Any) -> None:
    """Verification accepts the graphs; a part with another's numbers would be far off."""
    checkpoint = changed(untied, tmp_path / "checkpoint", [*EMBEDDINGS.values()], scale=2.0)
    done = export(checkpoint, tmp_path / precision, precision=precision)
    assert done.report is not None
    if precision == "fp16":
        return
    exact = export(checkpoint, tmp_path / "fp32", verify_outputs=False)
    scores = []
    for bundle in (done.bundle, exact.bundle):
        with Translator(bundle, intra_op_num_threads=1) as translator:
            found = translator.translate_batch(TEXTS, source_lang="en", target_lang="de")
            scores.append([t.score for t in found])
    assert np.isfinite(scores).all()


@pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5, reason="transformers 4 shares them all"
)
def test_stored_numbers_count_where_the_config_shares(untied: Path, tmp_path: Path) -> None:
    checkpoint = changed(untied, tmp_path / "checkpoint", [EMBEDDINGS["decoder"]])
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": True}))
    export(checkpoint, tmp_path / "bundle")


def test_the_files_of_transformers_4(untied: Path, tmp_path: Path) -> None:
    """With a head of its own, it stores one embedding; transformers 5 leaves the others random."""
    checkpoint = copied(untied, tmp_path / "checkpoint")
    state = load_file(checkpoint / SAFETENSORS)
    for side in ("encoder", "decoder"):
        del state[EMBEDDINGS[side]]
    save_file(state, checkpoint / SAFETENSORS, {"format": "pt"})
    done = export(checkpoint, tmp_path / "bundle")
    plain = export(untied, tmp_path / "plain", verify_outputs=False)
    for name in ("model.onnx_data", "fused_step.onnx", "decoder_model.onnx"):
        assert (done.bundle / name).read_bytes() == (plain.bundle / name).read_bytes()


def test_a_head_that_is_missing(untied: Path, tmp_path: Path) -> None:
    checkpoint = copied(untied, tmp_path / "checkpoint")
    state = load_file(checkpoint / SAFETENSORS)
    del state["lm_head.weight"]
    save_file(state, checkpoint / SAFETENSORS, {"format": "pt"})
    before = tree(tmp_path)
    with pytest.raises(
        BundleError, match=r"expected a tensor 'lm_head\.weight', since config\.json"
    ):
        export(checkpoint, tmp_path / "bundle")
    assert tree(tmp_path) == before


# --- Positions -----------------------------------------------------------------------------------


class LearnedPositions(torch.nn.Embedding):
    """A table of which a token's row is the number of tokens up to it, after the padding's row."""

    def forward(self, input_ids: Any, inputs_embeds: Any = None, cached: Any = 0) -> torch.Tensor:
        del inputs_embeds
        real = input_ids.ne(self.padding_idx).long()
        return super().forward((real.cumsum(1) + cached) * real + self.padding_idx)


def with_positions(model: Any, sides: tuple[str, ...], *, same: bool = False) -> Any:
    """Puts random learned positions in the place of sinusoidal ones."""
    for seed, side in enumerate(sides):
        torch.manual_seed(5 if same else 5 + seed)
        module = getattr(model.model, side)
        rows, width = module.embed_positions.weights.shape
        module.embed_positions = LearnedPositions(rows, width, padding_idx=1)
        module.embed_positions.weight.data.normal_()
    return model


@pytest.mark.parametrize(
    ("sides", "same"),
    [
        (("encoder", "decoder"), False),
        (("encoder", "decoder"), True),
        (("encoder",), False),
        (("decoder",), False),
    ],
    ids=["both", "one-table", "encoder", "decoder"],
)
def test_learned_positions(
    tiny_checkpoint: Path, tmp_path: Path, sides: tuple[str, ...], same: bool
) -> None:
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    model = with_positions(load(tiny_checkpoint), sides, same=same)
    model.save_pretrained(checkpoint)
    assert {POSITIONS[side] for side in sides} <= {*load_file(checkpoint / SAFETENSORS)}
    done = export(checkpoint, tmp_path / "bundle")
    assert done.report is not None
    check_translations(done.bundle, checkpoint, model)
    plain = export(tiny_checkpoint, tmp_path / "plain", verify_outputs=False)
    # Large tensors start on a page.
    more = 0 if same else 66 * ROW
    assert done.weight_bytes - plain.weight_bytes == pytest.approx(more, abs=4096)


def test_learned_positions_in_fewer_bits(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    with_positions(load(tiny_checkpoint), ("encoder", "decoder")).save_pretrained(checkpoint)
    for precision in ("fp16", "int8", "int4"):
        export(checkpoint, tmp_path / precision, precision=precision)


@pytest.mark.parametrize("rows", [64, 65, 1026])
def test_positions_of_another_length(tiny_checkpoint: Path, tmp_path: Path, rows: int) -> None:
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    state = load_file(checkpoint / SAFETENSORS)
    state[POSITIONS["decoder"]] = torch.ones(rows, 32)
    save_file(state, checkpoint / SAFETENSORS, {"format": "pt"})
    with pytest.raises(
        BundleError, match=rf"positions\.weight': expected shape \(66, 32\).*{rows}"
    ):
        export(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
