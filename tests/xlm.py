"""Makes small random XLM checkpoints with transformers, and generates with them as XLM should.

transformers' own generation of XLM appends a mask token and drops the attention mask, so its tokens
are of no use. Here each step sees the text so far and its language, and no cache.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import XLMConfig, XLMModel, XLMTokenizer, XLMWithLMHeadModel
from transformers.models.xlm.tokenization_xlm import lowercase_and_remove_accent

Pair = tuple[str, str]
LANGUAGES = {"de": 0, "en": 1, "fr": 2}
VOCABULARY = 500
"""Tokens of the models that the fixtures make."""
SPECIAL = ["<s>", "</s>", "<pad>", "<unk>", *(f"<special{n}>" for n in range(10))]


def make_checkpoint(folder: Path, *, head: bool = True, words: int = 86, **config: Any) -> Path:
    """Writes a model, with norms and biases that are not 0 and 1, and tokenizer files of letters.

    Args:
        folder: the new folder.
        head: whether there is an LM head.
        words: tokens beside the special ones.
        **config: entries of config.json that are other than those of a small causal model.
    """
    torch.manual_seed(words + len(config))
    facts = {
        "vocab_size": len(SPECIAL) + words,
        "emb_dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "max_position_embeddings": 64,
        "causal": True,
        "n_langs": len(LANGUAGES),
        "embed_init_std": 0.5,
        "init_std": 0.3,
        "lang2id": LANGUAGES,
        "id2lang": {str(number): code for code, number in LANGUAGES.items()},
        **config,
    }
    model = (XLMWithLMHeadModel if head else XLMModel)(XLMConfig(**facts)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm" in name and name.endswith("weight"):
                parameter.normal_(1, 0.3)
            elif name.endswith("bias") or "lin" in name or "ffns" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    entries = SPECIAL + [f"{chr(97 + n % 26)}{chr(97 + n // 26)}</w>" for n in range(words)]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    (folder / "merges.txt").write_text("", "utf-8")
    tokenizer = {"lang2id": facts["lang2id"], "id2lang": facts["id2lang"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), "utf-8")
    return folder


def load(folder: Path, *, causal: bool | None = None) -> Any:
    """Returns transformers' model, with a generation that feeds the whole text at each step."""
    overrides = {} if causal is None else {"causal": causal}
    model: Any = XLMWithLMHeadModel.from_pretrained(folder, **overrides).eval()

    def whole(input_ids: torch.Tensor, **_: Any) -> dict[str, Any]:
        langs = torch.full_like(input_ids, model.config.lang_id)
        return {"input_ids": input_ids, "langs": langs, "attention_mask": None}

    model.prepare_inputs_for_generation = whole
    return model


def generate(
    model: Any, prompt: list[int], lang: int, *, beam_size: int = 1, **options: Any
) -> tuple[list[int], float]:
    """Returns transformers' tokens, prompt included, and its score."""
    model.config.lang_id = lang
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([prompt]),
            num_beams=beam_size,
            do_sample=False,
            use_cache=False,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
    if beam_size > 1:
        return output.sequences[0].tolist(), float(output.sequences_scores[0])
    steps = model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)[
        0
    ]
    return output.sequences[0].tolist(), float(steps.mean())


def write_vocabulary(folder: Path, texts: list[str], size: int) -> None:
    """Replaces the vocabulary by byte-pair encoding learned from the words of texts."""
    reference: Any = XLMTokenizer.from_pretrained(folder)
    words = [
        word.removesuffix("</w>")
        for text in texts
        for word in lowercase_and_remove_accent(
            reference.moses_tokenize(reference.moses_pipeline(text, lang="en"), lang="en")
        )
    ]
    vocabulary, merges = _byte_pairs(Counter(words), size)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text("".join(f"{a} {b}\n" for a, b in merges), "utf-8")


def _byte_pairs(words: Counter[str], size: int) -> tuple[dict[str, int], list[Pair]]:
    """Returns a vocabulary of `size` entries and the merges that made it, learned from words.

    `tokenizers` breaks ties by chance. The entries would differ from run to run, and with them what
    a model with set weights finds fluent.
    """
    split = {word: (*word[:-1], f"{word[-1]}</w>") for word in words if word}
    entries = dict.fromkeys(
        [*SPECIAL, *sorted({part for parts in split.values() for part in parts})]
    )
    counts: Counter[Pair] = Counter()
    where: dict[Pair, set[str]] = {}
    for word, parts in split.items():
        for pair in pairwise(parts):
            counts[pair] += words[word]
            where.setdefault(pair, set()).add(word)
    merges: list[Pair] = []
    while len(entries) < size:
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        entries["".join(best)] = None
        for word in where.pop(best):
            for pair in pairwise(split[word]):
                counts[pair] -= words[word]
            split[word] = _merged(split[word], best)
            for pair in pairwise(split[word]):
                counts[pair] += words[word]
                where.setdefault(pair, set()).add(word)
        del counts[best]
    return {entry: number for number, entry in enumerate(entries)}, merges


def _merged(parts: tuple[str, ...], pair: Pair) -> tuple[str, ...]:
    found: list[str] = []
    joined = False  # whether the last one is the pair's, which takes part in no other
    for part in parts:
        if found and not joined and (found[-1], part) == pair:
            found[-1] += part
            joined = True
        else:
            found.append(part)
            joined = False
    return tuple(found)
