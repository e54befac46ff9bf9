#!/usr/bin/env python3
"""Trains the demo model on the CPU, from scratch or from a checkpoint.

Uses Adam. The learning rate has a warm-up, falls with the inverse square root, and falls linearly
to zero over the last 30 % of the time. SIGTERM or Ctrl-C stops the run after a save; --resume
continues it. SIGSTOP and SIGCONT pause and continue it; paused time does not count.

Writes to WORK/ckpt:
    last.pt: weights, optimizer and counters, every 10 minutes and at the end; --resume reads it
    best.pt: weights and counters of the lowest dev loss; export_checkpoint.py reads it
    curve.tsv: step, minutes, target tokens, mean dev loss, dev loss by direction
    snap*.pt: earlier weights; their average at the end is kept if it lowers the dev loss
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batches import Batch, Corpus, pad_batch
from checkpoint import SHIPPED_HELD_OUT, read_lines
from network import EMBEDDING, Network, make_config
from safetensors.torch import load_file
from sources import DEFAULT_WORK
from vocabulary import EOS, LANGS, Vocabulary

DEV_DIRECTIONS = (
    *(pair for lang in LANGS[1:] for pair in (("en", lang), (lang, "en"))),
    ("de", "fr"),
    ("ru", "es"),
)
DEV_BATCH = 100
LOG_SECONDS, EVAL_SECONDS, SAVE_SECONDS, SNAPSHOT_SECONDS = 30, 240, 600, 120
PAUSE_SECONDS = 60
"""The longest time that one step counts; the excess is a pause."""
DECAY_SHARE = 0.3
SNAPSHOTS_FROM = 0.85
KEPT_SNAPSHOTS = 5


def say(*words: object) -> None:
    """Prints a line of progress with the time of day."""
    print(time.strftime("%H:%M:%S"), *words, flush=True)


def save_atomically(value: object, path: Path) -> None:
    """Writes a checkpoint atomically: a crash leaves the old file or the new one."""
    temporary = path.with_suffix(".tmp")
    torch.save(value, temporary)
    temporary.replace(path)


def learning_rate(peak: float, warmup: int, step: int, progress: float) -> float:
    """Returns the rate at a step (from 1) after `progress` of the time, 0 to 1."""
    rise = min(step / warmup, math.sqrt(warmup / step))
    return peak * rise * min(1.0, max(0.0, (1 - progress) / DECAY_SHARE))


def dev_batches(folder: Path, vocabulary: Vocabulary, lines: int) -> dict[str, list[Batch]]:
    """Returns the dev set's batches by direction."""
    sequences = {}
    for lang in LANGS:
        texts = read_lines(folder / f"dev.{lang}", lines)
        sequences[lang] = [
            np.concatenate(([vocabulary.lang_ids[lang]], ids, [EOS]))
            for ids in vocabulary.encode(texts)
        ]
    directions = {}
    for ours, theirs in DEV_DIRECTIONS:
        pairs = sorted(
            zip(sequences[ours], sequences[theirs], strict=True), key=lambda pair: len(pair[1])
        )
        cut = [pairs[start : start + DEV_BATCH] for start in range(0, len(pairs), DEV_BATCH)]
        directions[f"{ours}-{theirs}"] = [
            pad_batch([pair[0] for pair in part], [pair[1] for pair in part]) for part in cut
        ]
    return directions


class Training:
    """One run: the network, its counters and its files.

    Args:
        args: the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.folder: Path = args.work / "ckpt"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.step = 0
        self.spent = 0.0
        self.target_tokens = 0
        self.snapshots: list[str] = []
        self.best_loss = math.inf
        self.stopped = False

        vocabulary = Vocabulary(args.work / "tok")
        self.dev = dev_batches(args.heldout, vocabulary, args.dev_lines)
        resumed = self._load("last.pt") if args.resume else None
        self.network = Network(
            make_config(self._shape(vocabulary, resumed), args.dropout), args.threads
        )
        if resumed:
            self._take_over(resumed)
        elif args.init:
            weights = load_file(args.init / "model.safetensors")
            self.network.load_state({**weights, "shared": weights[EMBEDDING]})
        corpus = Corpus.load(args.work / "tok/train.npz", vocabulary.lang_ids)
        # A resumed run draws new pairs: its position in the pass is not saved.
        seed = 1000 + self.step if resumed else 1
        self.stream = corpus.batches(args.tokens, np.random.default_rng(seed))

    def _load(self, name: str) -> dict[str, Any]:
        return torch.load(self.folder / name, map_location="cpu", weights_only=True)

    def _shape(self, vocabulary: Vocabulary, resumed: Mapping[str, Any] | None) -> dict[str, Any]:
        """Returns the shape of the checkpoint, or that of the command line for a new network."""
        args = self.args
        shape: dict[str, Any]
        if resumed:
            shape = resumed["config"]
        elif args.init:
            shape = json.loads((args.init / "config.json").read_text(encoding="utf-8"))
        else:
            shape = {
                "vocab_size": vocabulary.size,
                "d_model": args.d_model,
                "encoder_layers": args.encoder_layers,
                "decoder_layers": args.decoder_layers,
                "encoder_attention_heads": args.heads,
                "decoder_attention_heads": args.heads,
                "encoder_ffn_dim": args.ffn_dim,
                "decoder_ffn_dim": args.ffn_dim,
                "max_position_embeddings": 256,
            }
        if shape["vocab_size"] != vocabulary.size:
            raise SystemExit(
                f"{args.work}/tok has {vocabulary.size} tokens, the checkpoint has "
                f"{shape['vocab_size']}: encode the corpus with the checkpoint's own tokenizer"
            )
        return shape

    def _take_over(self, checkpoint: Mapping[str, Any]) -> None:
        self.network.load_state(checkpoint["model"])
        self.network.optimizer.load_state_dict(checkpoint["opt"])
        self.step, self.spent = checkpoint["step"], checkpoint["spent"]
        self.target_tokens, self.snapshots = checkpoint["toks"], checkpoint["snaps"]
        if (self.folder / "best.pt").exists():
            self.best_loss = self._load("best.pt")["dev"]
        say(f"resumed at step {self.step}, {self.spent / 60:.1f} minutes")

    def counters(self) -> dict[str, Any]:
        """Returns the counters and the configuration that every checkpoint stores."""
        return {
            "step": self.step,
            "spent": self.spent,
            "toks": self.target_tokens,
            "config": self.network.config.to_dict(),
        }

    def save(self) -> None:
        """Writes last.pt."""
        state = {
            "model": self.network.state(),
            "opt": self.network.optimizer.state_dict(),
            "snaps": self.snapshots,
            **self.counters(),
        }
        save_atomically(state, self.folder / "last.pt")
        say("saved")

    def snapshot(self) -> None:
        """Writes the weights for the average at the end, and deletes the oldest snapshots."""
        path = self.folder / f"snap{self.step}.pt"
        save_atomically(self.network.state(), path)
        self.snapshots.append(str(path))
        for old in self.snapshots[:-KEPT_SNAPSHOTS]:
            (self.folder / Path(old).name).unlink(missing_ok=True)
        del self.snapshots[:-KEPT_SNAPSHOTS]

    def evaluate(self, label: str = "", *, in_curve: bool = True) -> None:
        """Records the dev loss in the log and the curve, and saves weights with the lowest loss."""
        losses = {name: self.network.mean_nll(batches) for name, batches in self.dev.items()}
        mean = sum(losses.values()) / len(losses)
        by_direction = " ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
        say(f"DEV {label} step {self.step} mean {mean:.4f} {by_direction}")
        if in_curve:
            minutes = f"{self.spent / 60:.1f}"
            columns = (self.step, minutes, self.target_tokens, f"{mean:.4f}", json.dumps(losses))
            with (self.folder / "curve.tsv").open("a", encoding="utf-8") as curve:
                curve.write("\t".join(map(str, columns)) + "\n")
        # Step 0 is the initial checkpoint: a baseline, not a result of this run.
        if self.step and mean < self.best_loss:
            self.best_loss = mean
            best = {"model": self.network.state(), "dev": mean, **self.counters()}
            save_atomically(best, self.folder / "best.pt")

    def run(self) -> None:
        """Trains until the time or the steps are used up, or until a signal stops the run."""
        args = self.args
        total = args.minutes * 60
        if self.step == 0 and args.init:
            self.evaluate("initial")
        before = last_log = last_eval = last_save = last_snapshot = time.monotonic()
        nll, target_tokens, source_tokens = 0.0, 0, 0
        while self.spent < total and self.step < args.steps and not self.stopped:
            self.step += 1
            progress = self.spent / total
            rate = learning_rate(args.lr, args.warmup, self.step, progress)
            done = self.network.train_step([next(self.stream) for _ in range(args.threads)], rate)
            self.target_tokens += done.target_tokens
            nll += done.nll
            target_tokens += done.target_tokens
            source_tokens += done.source_tokens

            now = time.monotonic()
            if now - last_log > LOG_SECONDS:
                seconds = now - last_log
                say(
                    f"step {self.step} nll {nll / target_tokens:.3f} lr {rate:.2e} "
                    f"gnorm {done.grad_norm:.2f} tgt tok/s {target_tokens / seconds:.0f} "
                    f"src tok/s {source_tokens / seconds:.0f} progress {progress:.3f}"
                )
                nll, target_tokens, source_tokens = 0.0, 0, 0
                last_log = now
            if now - last_eval > EVAL_SECONDS:
                self.evaluate()
                last_eval = time.monotonic()
            if now - last_save > SAVE_SECONDS:
                self.save()
                last_save = time.monotonic()
            if progress > SNAPSHOTS_FROM and now - last_snapshot > SNAPSHOT_SECONDS:
                self.snapshot()
                last_snapshot = time.monotonic()
            after = time.monotonic()
            self.spent += min(after - before, PAUSE_SECONDS)
            before = after
        self.save()
        if self.stopped:
            say("stopped; take it up again with --resume")
        else:
            self.finish()

    def finish(self) -> None:
        """Evaluates the last weights, and their average with the snapshots."""
        self.evaluate("final")
        if self.snapshots:
            last = self.network.state()
            states = [*(self._load(Path(path).name) for path in self.snapshots), last]
            states = states[-KEPT_SNAPSHOTS - 1 :]
            mean = {name: sum(s[name] for s in states) / len(states) for name in last}
            self.network.load_state(mean)
            self.evaluate(f"average of {len(states)} snapshots", in_curve=False)
        say(
            f"done: {self.step} steps, {self.target_tokens} target tokens, "
            f"{self.spent / 60:.1f} minutes; best dev loss {self.best_loss:.4f}"
        )


def parse_args() -> argparse.Namespace:
    """Returns the checked command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    parser.add_argument(
        "--heldout", type=Path, help="default: WORK/heldout, or the shipped one if there is none"
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--init", type=Path, metavar="MODEL", help="checkpoint to start from")
    start.add_argument("--resume", action="store_true", help="go on from WORK/ckpt/last.pt")
    parser.add_argument("--minutes", type=float, default=75, help="of all runs, the resumed too")
    parser.add_argument("--steps", type=int, default=10**9, help="stop earlier, after these")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak rate")
    parser.add_argument("--warmup", type=int, default=800, help="steps")
    parser.add_argument("--tokens", type=int, default=1536, help="per batch")
    parser.add_argument("--threads", type=int, default=2, help="batches per step, one core each")
    parser.add_argument("--nice", type=int, default=10, help="give way to other programs, 0 to 19")
    parser.add_argument("--dev-lines", type=int, default=200)
    parser.add_argument("--dropout", type=float, default=0.0)
    shape = parser.add_argument_group("shape of a network trained from scratch")
    shape.add_argument("--encoder-layers", type=int, default=5)
    shape.add_argument("--decoder-layers", type=int, default=3)
    shape.add_argument("--d-model", type=int, default=256)
    shape.add_argument("--ffn-dim", type=int, default=1024)
    shape.add_argument("--heads", type=int, default=4)
    args = parser.parse_args()
    last = args.work / "ckpt/last.pt"
    if args.resume != last.exists():
        parser.error(f"{last}: " + ("not found" if args.resume else "exists; pass --resume"))
    if args.heldout is None:
        own = args.work / "heldout"
        args.heldout = own if own.is_dir() else SHIPPED_HELD_OUT
    return args


def main() -> None:
    """Trains, and saves when a signal stops the run."""
    args = parse_args()
    os.nice(args.nice)
    torch.set_num_threads(1)
    torch.manual_seed(1)
    training = Training(args)
    say("parameters", sum(weight.numel() for weight in training.network.weights))

    def stop(*_: object) -> None:
        training.stopped = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    training.run()


if __name__ == "__main__":
    main()
