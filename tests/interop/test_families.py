"""Every member of the family through export, verification and translation, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import families
from families import MEMBERS, REFUSED, Member
from m2m100_onnx import BundleError, Translator
from m2m100_onnx_export import export

# A score is the mean log-probability of a token; these models are random and narrow.
NEAR = {"int8": 0.5, "int4": 1.5}


@pytest.fixture(scope="module", params=MEMBERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def member(name: str) -> Member:
    return MEMBERS[name]


@pytest.fixture(scope="module")
def checkpoint(member: Member, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families") / "checkpoint"
    member.make(folder)
    return folder


@pytest.fixture(scope="module")
def fp32(checkpoint: Path, member: Member) -> Path:
    """The bundle, verified as a user's is."""
    bundle = checkpoint.parent / "fp32"
    export(checkpoint, bundle, family=member.family)
    return bundle


def translated(translator: Translator, member: Member, beam_size: int) -> list[Any]:
    return translator.translate_batch(
        member.texts,
        source_lang=member.source,
        target_lang=member.target,
        beam_size=beam_size,
        early_stopping=beam_size > 1,
        length_penalty=1.0,
        max_length=families.MAX_LENGTH,
    )


@pytest.mark.parametrize("beam_size", [1, 4])
def test_parity(checkpoint: Path, fp32: Path, member: Member, beam_size: int) -> None:
    """Ids, tokens, scores and texts are transformers', with either kind of graphs."""
    ids, forced = member.frames(checkpoint, member)
    wanted = families.generate(checkpoint, ids, forced, beam_size, families.MAX_LENGTH)
    # Neither one token over and over nor one translation for all texts.
    assert len({tuple(tokens) for tokens, _ in wanted}) > 1
    assert all(len(set(tokens)) > 2 for tokens, _ in wanted)
    texts = families.texts_of(checkpoint, member, [tokens for tokens, _ in wanted])
    for fused in (True, False):
        with Translator(fp32, fused=fused, intra_op_num_threads=1) as translator:
            encoded = [translator.encode(t, member.source, member.target) for t in member.texts]
            assert encoded == ids
            found = translated(translator, member, beam_size)
        assert [list(t.tokens) for t in found] == [tokens for tokens, _ in wanted]
        assert [t.score for t in found] == pytest.approx([score for _, score in wanted], abs=1e-4)
        assert [t.text for t in found] == texts


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantized(checkpoint: Path, fp32: Path, member: Member, precision: Any) -> None:
    """Random weights round to other translations, so scores have only to be near."""
    bundle = checkpoint.parent / precision
    export(checkpoint, bundle, precision=precision, family=member.family, verify_outputs=False)
    with Translator(bundle, intra_op_num_threads=1) as translator:
        found = translated(translator, member, 4)
    with Translator(fp32, intra_op_num_threads=1) as translator:
        exact = translated(translator, member, 4)
    assert all(np.isfinite(t.score) and len(t.tokens) > 3 for t in found)
    scores = [t.score for t in exact]
    assert [t.score for t in found] == pytest.approx(scores, abs=NEAR[precision])


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(tmp_path: Path, kind: str) -> None:
    make, named = REFUSED[kind]
    make(tmp_path / "checkpoint")
    with pytest.raises(BundleError, match=named):
        export(tmp_path / "checkpoint", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
