"""Engines on lines of real text at their natural lengths; `python lines.py ENGINE` serves one.

`load` names the model, the lines and their languages. A batch is a form and is translated whole:

- `text`: text in and text out, with the fastest tokenizer that the engine is used with;
- `tokens`: the same between tokens that were made before. No tokenizer is timed;
- `first`: the first line alone, which brings an engine's pages and threads back.

Every engine sorts lines by length and cuts them into batches itself, but for transformers'
`generate`, for which this file does. See `engines.py` for the rest.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from m2m100_onnx.cli.benchmark.worker import GIVEN_TOKENS, Open, Translate, serve

START, LONGEST = 2, 200
# What `generate` is given at once.
TOGETHER = 32

Lines = list[str]
Rows = list[list[str]]
Languages = tuple[str, str]


def ours(**options: Any) -> Open:
    """Returns this project's runtime; the options go to `Translator`."""

    def open_model(
        folder: str, lines: Lines, languages: Languages, threads: int | None = None
    ) -> Translate:
        from m2m100_onnx import Translator
        from m2m100_onnx.engine.batches import Batch, Sentence, cut
        from m2m100_onnx.engine.stopping import Stop
        from m2m100_onnx.options import resolve_options

        translator = Translator(folder, intra_op_num_threads=threads, **options)
        config = translator.bundle.config
        source, target = languages
        prompt = translator.tokenizer.build_prompt(target, config.decoder_start_token_id)
        encoded = [translator.tokenizer.encode(line, source) for line in lines]
        sentences = [Sentence(n, ids, prompt) for n, ids in enumerate(encoded)]

        def tokens(beam_size: int) -> int:
            options = {"beam_size": beam_size, "max_length": LONGEST}
            sizes = config.max_position_embeddings, config.vocab_size
            settings = resolve_options(options, translator.defaults, *sizes)
            found = 0
            for some in cut(sentences, settings, translator.model.cache_bytes):
                batch = Batch.of(some, config.pad_token_id)
                done = translator.generator.run(batch, settings.search, Stop())
                found += sum(len(hypotheses[0].tokens) for hypotheses in done if hypotheses)
            return found - GIVEN_TOKENS * len(lines)

        def text(beam_size: int, lines: Lines = lines) -> int:
            found = translator.translate_batch(
                lines,
                source_lang=source,
                target_lang=target,
                beam_size=beam_size,
                max_length=LONGEST,
            )
            return sum(len(each.tokens) - GIVEN_TOKENS for each in found)

        return by_form(text=text, tokens=tokens, first=partial(text, lines=lines[:1]))

    return open_model


def ctranslate2(compute_type: str) -> Open:
    """Returns CTranslate2 on a converted model, with SentencePiece and no other tokenizer.

    CTranslate2 takes and gives pieces, so an `M2M100Tokenizer` would look each up twice in vain.
    """

    def open_model(
        folder: str, lines: Lines, languages: Languages, threads: int, workers: int, model: str
    ) -> Translate:
        import ctranslate2
        import sentencepiece

        translator = ctranslate2.Translator(
            folder,
            device="cpu",
            compute_type=compute_type,
            inter_threads=workers,
            intra_threads=threads,
        )
        pieces = sentencepiece.SentencePieceProcessor(
            model_file=str(Path(model) / "sentencepiece.bpe.model")
        )
        source, target = (f"__{language}__" for language in languages)

        def encoded() -> Rows:
            return [[source, *row, "</s>"] for row in pieces.encode(lines, out_type=str)]

        def translated(rows: Rows, beam_size: int, most: int) -> Rows:
            found = translator.translate_batch(
                rows,
                target_prefix=[[target]] * len(rows),
                beam_size=beam_size,
                max_decoding_length=LONGEST - 1,
                max_batch_size=most,
            )
            # Each begins with the target language. `</s>`, which ours counts, is not returned.
            return [each.hypotheses[0] for each in found]

        before = encoded()

        def tokens(beam_size: int, max_batch_size: int, rows: Rows = before) -> int:
            return sum(map(len, translated(rows, beam_size, max_batch_size)))

        def text(beam_size: int, max_batch_size: int) -> int:
            found = translated(encoded(), beam_size, max_batch_size)
            pieces.decode([row[1:] for row in found])
            return sum(map(len, found))

        return by_form(text=text, tokens=tokens, first=partial(tokens, rows=before[:1]))

    return open_model


def openvino(
    folder: str, lines: Lines, languages: Languages, threads: int | None, model: str
) -> Translate:
    """Opens optimum-intel's model, with transformers' tokenizer and `generate`."""
    import torch
    from transformers import M2M100Tokenizer

    from engines import openvino as open_generator

    threads = threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    generator = open_generator(folder, threads)
    source, target = languages
    tokenizer = M2M100Tokenizer.from_pretrained(model, src_lang=source)
    language = tokenizer.get_lang_id(target)
    # The longest first, and neighbours together.
    ordered = sorted(lines, key=lambda line: -len(tokenizer(line)["input_ids"]))

    def encoded() -> Iterator[Any]:
        for at in range(0, len(ordered), TOGETHER):
            yield tokenizer(ordered[at : at + TOGETHER], return_tensors="pt", padding=True)

    before = list(encoded())
    shortest = tokenizer(ordered[-1:], return_tensors="pt")

    def generate(batch: Any, beam_size: int) -> Any:
        with torch.inference_mode():
            return generator.generate(
                **batch,
                forced_bos_token_id=language,
                num_beams=beam_size,
                do_sample=False,
                max_length=LONGEST,
                early_stopping=beam_size > 1,
            )

    def count(found: Any) -> int:
        return int((found != tokenizer.pad_token_id).sum()) - GIVEN_TOKENS * len(found)

    def tokens(beam_size: int) -> int:
        return sum(count(generate(batch, beam_size)) for batch in before)

    def text(beam_size: int) -> int:
        total = 0
        for batch in encoded():
            found = generate(batch, beam_size)
            tokenizer.batch_decode(found, skip_special_tokens=True)
            total += count(found)
        return total

    def first(beam_size: int) -> int:
        return count(generate(shortest, beam_size))

    return by_form(text=text, tokens=tokens, first=first)


def by_form(**forms: Callable[..., int]) -> Translate:
    """Returns what translates all lines in the form that a batch names."""
    return lambda form, **options: forms[form](**options)


ENGINES: dict[str, Open] = {
    "ours int8": ours(),
    "ours int4": ours(),
    "ours int8 without kernels": ours(kernels=False),
    "ours int4 without kernels": ours(kernels=False),
    "ctranslate2 int8": ctranslate2("int8"),
    "openvino int8": openvino,
}


if __name__ == "__main__":
    serve(ENGINES[sys.argv[1]])
