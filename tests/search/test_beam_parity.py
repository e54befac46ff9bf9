"""Compares the search with that of transformers, on a small model with every kind of option."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest
import torch
from transformers import M2M100Config, M2M100ForConditionalGeneration

from m2m100_onnx.options import SearchOptions
from m2m100_onnx.search.hypothesis import Hypothesis
from m2m100_onnx.search.state import Float32Array, Int64Array
from searches import EOS, PAD, LogitsState, assert_same, describe, search

# --- transformers ------------------------------------------------------------------------------

VOCAB = 96
LANGUAGES = (90, 91, 92, 93)


@pytest.fixture(scope="module")
def model() -> Iterator[M2M100ForConditionalGeneration]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are tiny
    torch.manual_seed(1)
    config = M2M100Config(
        vocab_size=VOCAB,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        decoder_start_token_id=EOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        init_std=0.3,
    )
    net = M2M100ForConditionalGeneration(config).eval()
    # The head is not tied, because a random tied head only repeats its input. The scales make the
    # end come early for some sources and late for others. A pad would shift later positions.
    net.lm_head = torch.nn.Linear(32, VOCAB)
    with torch.no_grad():
        net.lm_head.weight.normal_(0, 0.3)
        net.lm_head.weight[EOS].mul_(2)
        net.lm_head.bias.zero_()
        net.lm_head.bias[[EOS, PAD]] = torch.tensor([1.5, -30.0])
    yield net
    torch.set_num_threads(threads)


@dataclass
class TorchState:
    """Computes the whole prefix again in each step. This is slow, but needs no cache."""

    model: M2M100ForConditionalGeneration
    encoded: torch.Tensor
    mask: torch.Tensor
    tokens: torch.Tensor

    @torch.no_grad()
    def logits(self) -> Float32Array:
        hidden = self.model.model.decoder(
            input_ids=self.tokens,
            encoder_hidden_states=self.encoded,
            encoder_attention_mask=self.mask,
            use_cache=False,
        ).last_hidden_state
        logits: Float32Array = self.model.lm_head(hidden[:, -1]).numpy()
        return logits

    def step(self, tokens: Int64Array) -> Float32Array:
        self.tokens = torch.cat([self.tokens, torch.from_numpy(tokens)], dim=1)
        return self.logits()

    def select(self, rows: Int64Array) -> None:
        index = torch.from_numpy(rows)
        self.encoded, self.mask = self.encoded[index], self.mask[index]
        self.tokens = self.tokens[index]


@dataclass(frozen=True)
class Sources:
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    languages: tuple[int, ...]

    def pick(self, index: list[int]) -> Sources:
        langs = tuple(self.languages[i] for i in index)
        return Sources(self.input_ids[index], self.attention_mask[index], langs)


def make_sources(batch: int, seed: int) -> Sources:
    """Returns padded sources of mixed lengths, each with its own language."""
    rng = random.Random(seed)
    lengths = [rng.randint(3, 14) for _ in range(batch)]
    ids = torch.full((batch, max(lengths)), PAD)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.tensor([rng.randint(3, 89) for _ in range(length - 1)] + [EOS])
    return Sources(ids, (ids != PAD).long(), tuple(rng.choice(LANGUAGES) for _ in range(batch)))


def run_search(
    model: M2M100ForConditionalGeneration, sources: Sources, options: SearchOptions
) -> list[list[Hypothesis]]:
    with torch.no_grad():
        encoded = model.model.encoder(sources.input_ids, sources.attention_mask).last_hidden_state
    prompt = torch.tensor([[EOS, language] for language in sources.languages])
    state = TorchState(model, encoded, sources.attention_mask, prompt)
    return search(LogitsState(state, state.logits()), prompt.numpy(), eos_id=EOS, options=options)


def run_transformers(
    model: M2M100ForConditionalGeneration, sources: Sources, options: SearchOptions
) -> list[list[Hypothesis]]:
    """Runs `generate` once per language, because a call forces one language."""
    results: list[list[Hypothesis]] = [[] for _ in sources.languages]
    for language in set(sources.languages):
        index = [i for i, other in enumerate(sources.languages) if other == language]
        settings = asdict(options)
        settings["num_beams"] = settings.pop("beam_size")
        settings["num_return_sequences"] = settings.pop("num_hypotheses")
        settings["suppress_tokens"] = list(settings["suppress_tokens"]) or None
        words = settings.pop("suppress_sequences")
        settings["bad_words_ids"] = [list(ids) for ids in words] or None
        assert (settings.pop("seed"), settings.pop("disable_unk")) == (None, False)
        off = ("patience", "num_beam_groups", "diversity_penalty", "stop_sequences")
        assert [settings.pop(name) for name in off] == [1, 1, 0, ()]
        assert settings.pop("max_length_ratio") is None
        assert not settings.pop("replace_unknowns") | settings.pop("alignments")
        settings["min_p"] = settings["min_p"] or None
        out = model.generate(
            input_ids=sources.input_ids[index],
            attention_mask=sources.attention_mask[index],
            forced_bos_token_id=language,
            output_scores=True,
            return_dict_in_generate=True,
            **settings,
        )
        scores = out.sequences_scores if options.beam_size > 1 else None
        if scores is None:
            per_token = model.compute_transition_scores(
                out.sequences, out.scores, normalize_logits=True
            )
        for row, sequence in enumerate(out.sequences.tolist()):
            end = sequence.index(EOS, 1) + 1 if EOS in sequence[1:] else len(sequence)
            if scores is None:
                score = float(per_token[row, : end - 1].sum())
                score /= (end - 1) ** options.length_penalty
            else:
                score = float(scores[row])
            sentence = index[row // options.num_hypotheses]
            results[sentence].append(Hypothesis(tuple(sequence[:end]), score))
    return results


def make_cases() -> list[tuple[int, SearchOptions]]:
    """Returns batch sizes and options: full grids of related options, and random combinations."""
    beams, stoppings = (1, 2, 4, 5), (False, True, "never")
    penalties = (0.5, 1.0, 2.0, 0.0, -1.0)
    cases: list[tuple[int, dict[str, Any]]] = []
    for beam, stopping, penalty in itertools.product(beams, stoppings, penalties):
        both = {"early_stopping": stopping, "length_penalty": penalty}
        cases.append((3, {"beam_size": beam, "num_hypotheses": beam, "max_length": 20, **both}))
    for beam, stopping, length in itertools.product(beams, stoppings, (5, 40)):
        cases.append((3, {"beam_size": beam, "early_stopping": stopping, "max_length": length}))
    for beam, penalty in itertools.product((2, 4, 5), (-1.0, -0.5, 0.5)):
        hopes = {"early_stopping": "never", "length_penalty": penalty, "max_length": 20}
        cases.append((16, {"beam_size": beam, "num_hypotheses": beam, **hopes}))
    cases += [
        (3, {"beam_size": beam, "num_hypotheses": count, "max_length": 20})
        for beam in beams
        for count in range(1, beam + 1)
    ]
    banned = (((5,), (17, 40), (40, 5)), ((17,), (40, 17), (95, 5, 40)))
    cases += [
        (3, {"beam_size": beam, "num_hypotheses": beam, "suppress_sequences": some, **limit})
        for beam in (1, 4)
        for some in banned
        for limit in ({"max_length": 20}, {"max_length": 40, "no_repeat_ngram_size": 2})
    ]
    rng = random.Random(7)
    for _ in range(90):
        beam, length = rng.choice(beams), rng.choice((5, 20, 40))
        options = {
            "beam_size": beam,
            "num_hypotheses": rng.randint(1, beam),
            "max_length": length,
            "min_length": rng.choice((0, 0, 8)) if length > 8 else rng.choice((0, 4)),
            "length_penalty": rng.choice(penalties),
            "early_stopping": rng.choice(stoppings),
            "no_repeat_ngram_size": rng.choice((0, 1, 2, 3)),
            "repetition_penalty": rng.choice((1.0, 1.0, 1.3, 0.8)),
            "suppress_tokens": rng.choice(((), (), (5, 17, 40, 95), (EOS,))),
        }
        cases.append((rng.choice((1, 3, 16)), options))
    return [(batch, SearchOptions(**options)) for batch, options in cases]


@pytest.mark.parametrize(("batch", "options"), make_cases(), ids=describe)
def test_equals_transformers(
    model: M2M100ForConditionalGeneration, batch: int, options: SearchOptions
) -> None:
    sources = make_sources(batch, seed=batch)
    expected = run_transformers(model, sources, options)
    for found, wanted in zip(run_search(model, sources, options), expected, strict=True):
        assert len(found) == options.num_hypotheses
        assert_same(found, wanted)


def test_the_comparison_with_transformers_is_not_trivial(
    model: M2M100ForConditionalGeneration,
) -> None:
    """Sequences have many lengths, languages matter, and every option changes some result."""
    sources = make_sources(16, seed=16)
    plain = SearchOptions(beam_size=4, num_hypotheses=4, max_length=20, early_stopping=False)
    results = run_search(model, sources, plain)
    lengths = Counter(len(h.tokens) for row in results for h in row if h.tokens[-1] == EOS)
    assert len(lengths) > 8
    assert any(h.tokens[-1] != EOS for row in results for h in row)
    swapped = replace(sources, languages=tuple(reversed(sources.languages)))
    first = [row[0].tokens[2:] for row in results]
    assert [row[0].tokens[2:] for row in run_search(model, swapped, plain)] != first
    changes: list[dict[str, Any]] = [
        {"early_stopping": True},
        {"early_stopping": "never"},
        {"length_penalty": 2.0},
        {"length_penalty": -1.0},
        {"min_length": 8},
        {"no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.3},
        {"suppress_tokens": (5, 17, 40, 95)},
        {"suppress_sequences": ((5,), (17,), (40, 95))},
    ]
    for change in changes:
        changed = run_search(model, sources, replace(plain, **change))
        tokens = [[h.tokens for h in row] for row in changed]
        assert tokens != [[h.tokens for h in row] for row in results], change


def test_padding_of_the_sources_changes_nothing(model: M2M100ForConditionalGeneration) -> None:
    sources = make_sources(16, seed=3)
    options = SearchOptions(beam_size=4, num_hypotheses=2, max_length=30)
    together = run_search(model, sources, options)
    for index, found in enumerate(together):
        alone = sources.pick([index])
        length = int(alone.attention_mask.sum())
        alone = replace(
            alone,
            input_ids=alone.input_ids[:, :length],
            attention_mask=alone.attention_mask[:, :length],
        )
        assert_same(found, run_search(model, alone, options)[0])
