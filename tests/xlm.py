"""Makes small random XLM checkpoints with transformers, and generates with them as XLM should.

transformers' own generation of XLM appends a mask token and drops the attention mask, so its tokens
are of no use. Here each step sees the text so far and its language, and no cache.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import XLMConfig, XLMModel, XLMTokenizer, XLMWithLMHeadModel
from transformers.models.xlm.tokenization_xlm import lowercase_and_remove_accent

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
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=size, end_of_word_suffix="</w>", show_progress=False, special_tokens=SPECIAL
    )
    tokenizer.train_from_iterator([" ".join(words)], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), "utf-8")
    lines = [" ".join(pair) + "\n" for pair in model["merges"]]
    (folder / "merges.txt").write_text("".join(lines), "utf-8")
