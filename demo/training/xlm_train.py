#!/usr/bin/env python3
"""Trains the small causal XLM on the CPU, from what xlm_prepare.py wrote.

    xlm_train.py --minutes 25 --out demo/build/xlm/model

Uses AdamW. The learning rate has a warm-up, falls with the inverse square root, and falls linearly
to zero over the last 30 % of the time. Every four minutes, and at the end, the run measures the dev
loss.

Writes:
    --out: the checkpoint of the lowest dev loss, in fp16, with its tokenizer's files
    curve.tsv beside it: step, minutes, tokens, mean dev loss, dev loss by language
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from checkpoint import SHIPPED_HELD_OUT, read_lines
from numpy.typing import NDArray
from sources import DEFAULT_WORK
from torch.nn.functional import cross_entropy
from train import learning_rate, say
from transformers import XLMConfig, XLMTokenizer, XLMWithLMHeadModel
from transformers.utils import logging
from xlm_text import BOS, EOS, LANG_IDS, PAD, UNK, Batch, encode, pad_batch

POSITIONS = 512
JOINED_SHARE = 0.012
"""Share of the examples that are several texts in a row, up to `POSITIONS` long. Without them, the
later positions are never trained."""
POOL = 20_000
"""Number of examples that are sorted by length together."""
DEV_BATCH = 50
LOG_SECONDS, EVAL_SECONDS = 30, 240
MASK = 5


class Corpus(NamedTuple):
    """The texts of both languages.

    Attributes:
        flat: `(pieces,)`, the pieces of all texts.
        starts: `(texts,)`, where each text starts in `flat`.
        ends: `(texts,)`, where it ends.
        langs: `(texts,)`, language numbers.
    """

    flat: NDArray
    starts: NDArray
    ends: NDArray
    langs: NDArray

    @classmethod
    def load(cls, path: Path) -> Corpus:
        """Reads the arrays; the languages' texts follow each other."""
        with np.load(path) as arrays:
            flat = np.concatenate([arrays[f"flat_{lang}"] for lang in LANG_IDS])
            per_lang = [arrays[f"len_{lang}"] for lang in LANG_IDS]
        lengths = np.concatenate(per_lang)
        langs = np.repeat(list(LANG_IDS.values()), [len(ours) for ours in per_lang])
        ends = np.cumsum(lengths)
        return cls(flat, ends - lengths, ends, langs)

    def example(self, index: int, limit: int) -> list[int]:
        """Returns the pieces of a text and of those after it, as far as `limit` allows."""
        start, last = self.starts[index], index
        while (
            last + 1 < len(self.ends)
            and self.langs[last + 1] == self.langs[index]
            and self.ends[last + 1] - start <= limit
        ):
            last += 1
        return self.flat[start : self.ends[last]][: POSITIONS - 2].tolist()

    def batches(self, tokens: int, random: np.random.Generator) -> Iterator[Batch]:
        """Yields batches of about `tokens` tokens, padding included, without end."""
        while True:
            order = random.permutation(len(self.starts))
            for first in range(0, len(order), POOL):
                chosen = order[first : first + POOL]
                joined = random.random(len(chosen)) < JOINED_SHARE
                limits = np.where(joined, random.integers(64, POSITIONS - 1, len(chosen)), 0)
                examples = [self.example(*pair) for pair in zip(chosen, limits, strict=True)]
                yield from self._cut(examples, self.langs[chosen], tokens, random)

    @staticmethod
    def _cut(
        examples: list[list[int]], langs: NDArray, tokens: int, random: np.random.Generator
    ) -> Iterator[Batch]:
        """Yields batches of examples of like length, in random order."""
        by_length = sorted(range(len(examples)), key=lambda index: len(examples[index]))
        parts: list[list[int]] = [[]]
        for index in by_length:
            if (len(parts[-1]) + 1) * (len(examples[index]) + 2) > tokens and parts[-1]:
                parts.append([])
            parts[-1].append(index)
        for number in random.permutation(len(parts)):
            part = parts[number]
            yield pad_batch([examples[index] for index in part], langs[part].tolist())


def make_config(args: argparse.Namespace, vocab_size: int) -> XLMConfig:
    """Returns the shape of the published xlm-clm-ende-1024 in little."""
    return XLMConfig(
        vocab_size=vocab_size,
        emb_dim=args.width,
        n_layers=args.layers,
        n_heads=args.heads,
        max_position_embeddings=POSITIONS,
        causal=True,
        n_langs=len(LANG_IDS),
        use_lang_emb=True,
        lang2id=LANG_IDS,
        id2lang={str(number): lang for lang, number in LANG_IDS.items()},
        embed_init_std=args.width**-0.5,
        unk_index=UNK,
        mask_index=MASK,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )


def token_losses(model: XLMWithLMHeadModel, batch: Batch) -> torch.Tensor:
    """Returns the losses `(tokens,)` of all tokens after `<s>`, without padding."""
    target = batch.ids[:, 1:]
    real = target != PAD
    # Padding is at the end, where no token of a causal model sees it.
    hidden = model.transformer(batch.ids[:, :-1], langs=batch.langs[:, :-1])[0]
    logits = model.pred_layer.proj(hidden[real])
    return cross_entropy(logits.float(), target[real], reduction="none")


def dev_batches(folder: Path, tokenizer: XLMTokenizer) -> dict[str, list[Batch]]:
    """Returns the dev set's batches by language."""
    batches = {}
    for lang, number in LANG_IDS.items():
        texts = [encode(tokenizer, text, lang) for text in read_lines(folder / f"dev.{lang}")]
        texts.sort(key=len)
        parts = [texts[start : start + DEV_BATCH] for start in range(0, len(texts), DEV_BATCH)]
        batches[lang] = [pad_batch(part, [number] * len(part)) for part in parts]
    return batches


def dev_losses(model: XLMWithLMHeadModel, dev: dict[str, list[Batch]]) -> dict[str, float]:
    """Returns the mean loss per token in nats, by language."""
    model.eval()
    with torch.no_grad():
        losses = {
            lang: float(torch.cat([token_losses(model, batch) for batch in batches]).mean())
            for lang, batches in dev.items()
        }
    model.train()
    return losses


def save(model: XLMWithLMHeadModel, tokenizer: Path, out: Path) -> None:
    """Replaces the checkpoint folder by the model in fp16."""
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(tokenizer, temporary)
    stored = XLMWithLMHeadModel(model.config)
    stored.load_state_dict(model.state_dict())
    stored.half().save_pretrained(temporary)
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)


def optimizer_of(model: XLMWithLMHeadModel) -> torch.optim.AdamW:
    """Returns AdamW, which decays matrices alone."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


class Training:
    """One run.

    Args:
        args: the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(1)
        self.args = args
        self.tokenizer_folder = args.work / "xlm/tokenizer"
        tokenizer = XLMTokenizer.from_pretrained(str(self.tokenizer_folder))
        self.dev = dev_batches(args.heldout, tokenizer)
        corpus = Corpus.load(args.work / "xlm/train.npz")
        self.stream = corpus.batches(args.tokens, np.random.default_rng(1))
        self.model = XLMWithLMHeadModel(make_config(args, len(tokenizer.get_vocab()))).train()
        self.optimizer = optimizer_of(self.model)
        self.step = self.trained_tokens = 0
        self.best_loss = math.inf
        self.curve = args.out.with_name("curve.tsv")
        self.curve.parent.mkdir(parents=True, exist_ok=True)
        self.curve.write_text("step\tminutes\ttokens\tloss\tde\ten\n", encoding="utf-8")
        say(sum(parameter.numel() for parameter in self.model.parameters()), "parameters")

    def run(self) -> None:
        """Trains until the time is over."""
        start = logged = evaluated = time.monotonic()
        seconds = self.args.minutes * 60
        while (now := time.monotonic()) < start + seconds:
            loss = self._train_step((now - start) / seconds)
            if now - logged > LOG_SECONDS:
                logged = now
                say(f"step {self.step}, {self.trained_tokens} tokens, loss {loss:.3f}")
            if now - evaluated > EVAL_SECONDS:
                evaluated = now
                self._evaluate((now - start) / 60)
        self._evaluate((time.monotonic() - start) / 60)

    def _train_step(self, progress: float) -> float:
        batch = next(self.stream)
        self.step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.args.lr, self.args.warmup, self.step, progress)
        with torch.autocast("cpu", torch.bfloat16):
            losses = token_losses(self.model, batch)
        loss = losses.mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.trained_tokens += len(losses)
        return loss.item()

    def _evaluate(self, minutes: float) -> None:
        """Writes a point of the curve, and the checkpoint if the dev loss is the lowest so far."""
        losses = dev_losses(self.model, self.dev)
        mean = sum(losses.values()) / len(losses)
        values = (f"{loss:.4f}" for loss in (mean, losses["de"], losses["en"]))
        row = "\t".join([f"{self.step}", f"{minutes:.1f}", f"{self.trained_tokens}", *values])
        with self.curve.open("a", encoding="utf-8") as out:
            out.write(row + "\n")
        say("dev", losses)
        if mean < self.best_loss:
            self.best_loss = mean
            save(self.model, self.tokenizer_folder, self.args.out)


def main() -> None:
    """Trains a model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    parser.add_argument("--out", type=Path, help="default: WORK/xlm/model")
    parser.add_argument("--heldout", type=Path, default=SHIPPED_HELD_OUT)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=1500, help="per batch, padding included")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=300, help="steps")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--heads", type=int, default=8)
    args = parser.parse_args()
    args.out = args.out or args.work / "xlm/model"
    if args.out.exists() and not (args.out / "model.safetensors").is_file():
        parser.error(f"--out: {args.out} exists and is no checkpoint that could be replaced")
    logging.disable_progress_bar()
    os.nice(10)
    torch.set_num_threads(args.threads)
    Training(args).run()


if __name__ == "__main__":
    main()
