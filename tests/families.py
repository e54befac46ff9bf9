"""Makes a small random checkpoint of every member of the family, with transformers itself.

Knows each member's proportions, files and tokenizer, and how transformers frames a sentence for it.
Refuses to know the exporter and the runtime. Sizes are scaled down; ratios of layers, heads and
feed-forward widths are those of the published configs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    NllbMoeConfig,
    NllbMoeForConditionalGeneration,
)

import nllb
from checkpoints import PICKLE, SAFETENSORS, randomise, write_sharded
from tokenization import FILES, MODEL, rewrite

# The slow tokenizer of transformers 4 drops a blank at the end; the fast one is that of 5.
NllbReference = getattr(transformers, "NllbTokenizerFast", transformers.NllbTokenizer)
TEXTS = ("Open the file and save a copy.", "Close it.", "Do you want to delete this folder? No.")
MAX_LENGTH = 20
ROWS = 10609
Frames = tuple[list[list[int]], "int | None"]


def m2m100_frames(folder: Path, member: Member) -> Frames:
    """`[source] X </s>`, and the target language is forced."""
    tokenizer = M2M100Tokenizer.from_pretrained(folder)
    source, target = (f"__{code}__" for code in (member.source, member.target))
    rows = [tokenizer(text, add_special_tokens=False).input_ids for text in member.texts]
    source_id, target_id = tokenizer.convert_tokens_to_ids([source, target])
    return [[source_id, *row, tokenizer.eos_token_id] for row in rows], target_id


def small100_frames(folder: Path, member: Member) -> Frames:
    """`[target] X </s>`, and nothing is forced. Source: SMaLL-100's `tokenization_small100.py`."""
    rows, target = m2m100_frames(folder, member)
    return [[target, *row[1:]] for row in rows], None  # type: ignore[list-item]


def nllb_frames(folder: Path, member: Member) -> Frames:
    tokenizer = NllbReference.from_pretrained(folder, src_lang=member.source)
    rows = tokenizer(list(member.texts)).input_ids
    return rows, tokenizer.convert_tokens_to_ids(member.target)


@dataclass(frozen=True)
class Member:
    """A member of the family.

    Attributes:
        make: writes its checkpoint to a new folder.
        frames: returns the ids that transformers gives the encoder, and the token that its decoder
            is forced to, for the checkpoint and this member.
        family: what `export` has to be told, None where the files tell it.
    """

    make: Callable[[Path], None]
    source: str = "en"
    target: str = "de"
    texts: tuple[str, ...] = TEXTS
    frames: Callable[[Path, Member], Frames] = m2m100_frames
    family: str | None = None


def texts_of(folder: Path, member: Member, rows: list[list[int]]) -> list[str]:
    """The texts that transformers' tokenizer gives for the decoder's tokens."""
    kind = NllbReference if member.frames is nllb_frames else M2M100Tokenizer
    tokenizer = kind.from_pretrained(folder)
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    # Files that transformers 5 saves no longer call M2M100's languages special tokens.
    language = rows[0][1] if member.frames is m2m100_frames else None
    kept = [[token for token in row if token != language] for row in rows]
    return [tokenizer.decode(row, **options) for row in kept]


def random_model(rows: int = ROWS, **shape: Any) -> M2M100ForConditionalGeneration:
    """A random model; `layers`, `heads` and `ffn` count for both sides."""
    torch.manual_seed(rows + len(shape))
    layers, heads = shape.pop("layers", 2), shape.pop("heads", 4)
    width = shape.setdefault("d_model", 32)
    ffn = shape.pop("ffn", 4 * width)
    both = {"layers": layers, "attention_heads": heads, "ffn_dim": ffn}
    facts = {f"{side}_{key}": both[key] for side in ("encoder", "decoder") for key in both}
    facts |= {"vocab_size": rows, "max_position_embeddings": 1024, "init_std": 0.3, **shape}
    model = randomise(M2M100ForConditionalGeneration(M2M100Config(**facts)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layers." in name and parameter.dim() == 2:
                parameter.mul_(3 * (32 / width) ** 0.5)
        # A token's own embedding would outweigh the layers, and the tied head repeat the token.
        model.lm_head.weight.mul_(0.3)
        if model.lm_head.weight is not model.model.shared.weight:
            model.model.shared.weight.mul_(0.3)
        for side in (model.model.encoder, model.model.decoder):
            side.embed_tokens.weight.copy_(model.model.shared.weight)
    return model


def save(model: Any, folder: Path) -> None:
    """Writes the weights and configs; generation as the published checkpoints set it."""
    model.save_pretrained(folder)
    generation = {
        "bos_token_id": 0,
        "decoder_start_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "early_stopping": True,
        "max_length": MAX_LENGTH,
        "num_beams": 5,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation), "utf-8")


def in_shards(folder: Path, single: str) -> None:
    """Replaces model.safetensors by two files of that kind and their index."""
    state = load_file(folder / SAFETENSORS)
    (folder / SAFETENSORS).unlink()
    write_sharded(folder, single, state, torch.save if single == PICKLE else save_file)


def m2m100(folder: Path, *, shards: str | None = None, bare: bool = False, **shape: Any) -> None:
    """M2M100 with the demo's tokenizer files."""
    model = random_model(**shape)
    save(model.model if bare else model, folder)
    if shards:
        in_shards(folder, shards)
    for name in (*FILES, "special_tokens_map.json"):
        shutil.copy(MODEL / name, folder)


def wmt21(folder: Path) -> None:
    """Eight languages behind the pieces, and no made-up words."""
    tokenizer = M2M100Tokenizer(
        str(MODEL / "vocab.json"),
        str(MODEL / "sentencepiece.bpe.model"),
        language_codes="wmt21",
        num_madeup_words=0,
    )
    entries = len(json.loads((MODEL / "vocab.json").read_text("utf-8")))
    save(random_model(entries + 8, layers=4, heads=8, ffn=256), folder)
    tokenizer.save_pretrained(folder)


def trimmed(folder: Path) -> None:
    """Half of the pieces; the ids of languages move down with the size of vocab.json."""
    folder.mkdir(parents=True)
    entries = json.loads((MODEL / "vocab.json").read_text("utf-8"))
    kept = sorted(entries, key=lambda entry: entries[entry])[: len(entries) // 2]
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({entry: n for n, entry in enumerate(kept)}), "utf-8")
    tokenizer = M2M100Tokenizer(str(vocabulary), str(MODEL / "sentencepiece.bpe.model"))
    save(random_model(len(kept) + 108), folder)
    tokenizer.save_pretrained(folder)


def untied(folder: Path) -> None:
    """The LM head has weights of its own."""
    m2m100(folder, tie_word_embeddings=False)
    state = load_file(folder / SAFETENSORS)
    assert not torch.equal(state["lm_head.weight"], state["model.shared.weight"])
    # transformers 4 stores one embedding and then reads random numbers for the two sides.
    for side in ("encoder", "decoder"):
        state.setdefault(f"model.{side}.embed_tokens.weight", state["model.shared.weight"].clone())
    save_file(state, folder / SAFETENSORS, {"format": "pt"})


def added(folder: Path) -> None:
    """Fine-tuned with tokens of text: transformers gives the ids and resizes the embedding."""
    m2m100(folder)
    tokenizer = M2M100Tokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<br>", "{name}"])
    model = M2M100ForConditionalGeneration.from_pretrained(folder)
    model.resize_token_embeddings(ROWS + 8, mean_resizing=False)
    save(randomise(model, rows=slice(ROWS, None)), folder)
    tokenizer.save_pretrained(folder)


def new_language(folder: Path) -> None:
    """Fine-tuned on a language that the family lacks; its id follows the made-up words."""
    m2m100(folder)
    model = M2M100ForConditionalGeneration.from_pretrained(folder)
    model.resize_token_embeddings(ROWS + 2, mean_resizing=False)
    save(randomise(model, rows=slice(ROWS, None)), folder)
    path = folder / "tokenizer_config.json"
    entries = json.loads(path.read_text("utf-8"))["added_tokens_decoder"]
    entries[str(ROWS)] = {"content": "__tyv__", "special": True, "normalized": False}
    entries[str(ROWS + 1)] = {"content": "<br>", "special": False, "normalized": False}
    rewrite(path, added_tokens_decoder=entries)


def small100(folder: Path, *, named: bool) -> None:
    """Three decoder layers under a deeper encoder; the tokenizer's class may be named."""
    m2m100(folder, encoder_layers=4, decoder_layers=3)
    if named:
        rewrite(folder / "tokenizer_config.json", tokenizer_class="SMALL100Tokenizer")


def flores(
    folder: Path,
    *,
    codes: tuple[str, ...] = nllb.CODES,
    shards: str | None = None,
    legacy: bool = False,
    json_alone: bool = False,
    **shape: Any,
) -> None:
    """NLLB-200 with files as transformers 4 saves them, or with tokenizer.json alone, as 5 does."""
    rows = nllb.write_files(folder, codes, legacy_behaviour=legacy)
    if json_alone:
        kind = getattr(transformers, "NllbTokenizerFast", transformers.NllbTokenizer)
        kind.from_pretrained(folder).save_pretrained(folder)
        (folder / "sentencepiece.bpe.model").unlink()
    save(random_model(rows, **shape), folder)
    if shards:
        in_shards(folder, shards)


def flores_member(target: str = "deu_Latn", **arguments: Any) -> Member:
    return Member(partial(flores, **arguments), "eng_Latn", target, frames=nllb_frames)


_WIDE = {"layers": 4, "ffn": 256}
_EXTENDED = (*nllb.CODES, "tyv_Cyrl", "krl_Latn", "myv_Cyrl", "chv_Cyrl")
_PRUNED = ("deu_Latn", "eng_Latn", "fra_Latn", "rus_Cyrl")
_SMALL100 = {"target": "fr", "frames": small100_frames}

MEMBERS: dict[str, Member] = {
    "m2m100-418M": Member(m2m100),
    "m2m100-1.2B": Member(partial(m2m100, shards=SAFETENSORS, **_WIDE)),
    "m2m100-12B": Member(partial(m2m100, shards=PICKLE, d_model=64, layers=4), "de", "en"),
    "wmt21-en-x": Member(wmt21, "en", "ha"),
    "wmt21-x-en": Member(wmt21, "is", "en"),
    "nllb-distilled-600M": flores_member(),
    "nllb-1.3B": flores_member("zho_Hant", d_model=48, layers=3, ffn=384),
    "nllb-3.3B": flores_member("ace_Arab", shards=PICKLE, d_model=64, layers=3),
    "nllb-legacy": flores_member(legacy=True),
    "nllb-extended": flores_member("tyv_Cyrl", codes=_EXTENDED),
    "nllb-json": flores_member("zho_Hans", json_alone=True),
    "nllb-pruned": flores_member(codes=_PRUNED, encoder_layers=3, decoder_layers=1),
    "small100": Member(partial(small100, named=True), **_SMALL100),
    "small100-by-flag": Member(partial(small100, named=False), **_SMALL100, family="small100"),
    "added-tokens": Member(added, texts=(*TEXTS, "Hello {name}<br>Open {name}'s file.<br>")),
    "new-language": Member(new_language, "en", "tyv", texts=(*TEXTS, "Open<br>it.")),
    "from-a-new-language": Member(new_language, "tyv", "de"),
    "trimmed-vocabulary": Member(trimmed),
    "untied-head": Member(untied),
    "bare-model": Member(partial(m2m100, bare=True)),
    "other-sizes": Member(
        partial(
            m2m100,
            encoder_layers=3,
            decoder_layers=1,
            scale_embedding=False,
            encoder_ffn_dim=96,
            decoder_ffn_dim=48,
            decoder_attention_heads=8,
        )
    ),
    **{
        f"activation-{name}": Member(partial(m2m100, activation_function=name))
        for name in ("gelu", "gelu_new", "silu", "swish")
    },
}
"""Every member that exports, by name."""


def mixture(folder: Path) -> None:
    """NLLB-MoE: every second layer has experts."""
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "num_experts": 2}
    ffn = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 64}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sparse = {"encoder_sparse_step": 2, "decoder_sparse_step": 2}
    config = NllbMoeConfig(**sizes, **ffn, **heads, **sparse)
    NllbMoeForConditionalGeneration(config).save_pretrained(folder)


def changed(folder: Path, **config: Any) -> None:
    m2m100(folder)
    rewrite(folder / "config.json", **config)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "nllb-moe": (mixture, "nllb-moe"),
    "seamless-m4t": (partial(changed, model_type="seamless_m4t_v2"), "seamless_m4t_v2"),
    "quantized": (
        partial(
            changed, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}
        ),
        "bitsandbytes",
    ),
    "activation": (partial(changed, activation_function="mish"), "mish"),
}
"""Every kind that is refused, with what the error has to name."""


def generate(
    checkpoint: Path, ids: list[list[int]], forced: int | None, beam_size: int, max_length: int
) -> list[tuple[list[int], float]]:
    """The tokens and scores of transformers' translations, one sentence at a time."""
    model = M2M100ForConditionalGeneration.from_pretrained(checkpoint).eval()
    found = []
    for row in ids:
        with torch.inference_mode():
            output = model.generate(
                torch.tensor([row]),
                forced_bos_token_id=forced,
                num_beams=beam_size,
                early_stopping=beam_size > 1,
                max_length=max_length,
                return_dict_in_generate=True,
                output_scores=True,
            )
        if beam_size > 1:
            score = float(output.sequences_scores[0])
        else:
            steps = model.compute_transition_scores(
                output.sequences, output.scores, normalize_logits=True
            )[0]
            score = float(steps.mean())
        found.append((output.sequences[0].tolist(), score))
    return found
