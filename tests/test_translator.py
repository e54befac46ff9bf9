"""Text in, text out: order, batches, streams, languages, options and threads."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from transformers import M2M100ForConditionalGeneration

from m2m100_onnx import (
    Bundle,
    InputTooLongError,
    InvalidInputError,
    SearchOptions,
    TranslateOptions,
    Translation,
    Translator,
    UnknownLanguageError,
)
from m2m100_onnx.model import Model

EN_DE: dict[str, Any] = {"source_lang": "en", "target_lang": "de"}
GREEDY: dict[str, Any] = {**EN_DE, "beam_size": 1}
LIMIT = 256


@pytest.fixture(scope="module")
def translator(demo_bundle: Path) -> Translator:
    """On one thread: onnxruntime's own would spin against those of other processes."""
    return Translator(demo_bundle, intra_op_num_threads=1)


@pytest.fixture(scope="module")
def sentences(repository: Path) -> list[str]:
    """English test sentences, from 6 to 22 words."""
    path = repository / "demo" / "heldout" / "test.en"
    return path.read_text(encoding="utf-8").splitlines()[:40]


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shape of every batch the model was given."""
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


def assert_same(found: list[Translation], expected: list[Translation]) -> None:
    """Same tokens and texts in every hypothesis, scores within rounding."""
    for a, b in zip(found, expected, strict=True):
        assert [(h.tokens, h.text) for h in a.hypotheses] == [
            (h.tokens, h.text) for h in b.hypotheses
        ]
        scores = [h.score for h in b.hypotheses]
        assert [h.score for h in a.hypotheses] == pytest.approx(scores, abs=1e-5)


# --- What comes back -----------------------------------------------------------------------------


def test_a_text_gives_a_text(translator: Translator) -> None:
    found = translator.translate("Open the file.", **EN_DE)
    assert isinstance(found, str)
    assert "Datei" in found


@pytest.mark.parametrize("kind", [list, tuple])
def test_several_texts_give_a_list(translator: Translator, kind: type) -> None:
    found = translator.translate(kind(["Quit", "Open the file."]), **EN_DE)
    assert isinstance(found, list)
    assert found == [translator.translate(text, **EN_DE) for text in ("Quit", "Open the file.")]
    assert translator.translate(["Quit"], **EN_DE) == found[:1]
    assert translator.translate([], **EN_DE) == []
    assert translator.translate_batch([], **EN_DE) == []


def test_order_is_kept(translator: Translator, sentences: list[str]) -> None:
    texts = sorted(sentences[:12], key=len)
    texts = [text for pair in zip(texts[:6], reversed(texts[6:]), strict=True) for text in pair]
    found = translator.translate(texts, **GREEDY, max_batch_tokens=100)
    assert found == [translator.translate(text, **GREEDY) for text in texts]
    assert len(set(found)) == len(found)


def test_translation_is_its_best_hypothesis(translator: Translator, sentences: list[str]) -> None:
    found = translator.translate_batch(sentences[:6], **EN_DE, beam_size=4, num_hypotheses=4)
    for translation in found:
        best = translation.hypotheses[0]
        assert (translation.text, translation.score, translation.tokens) == (
            best.text,
            best.score,
            best.tokens,
        )
        scores = [hypothesis.score for hypothesis in translation.hypotheses]
        assert len(scores) == 4
        assert scores == sorted(scores, reverse=True)
        assert len({hypothesis.tokens for hypothesis in translation.hypotheses}) == 4
        for hypothesis in translation.hypotheses:
            assert hypothesis.tokens[:2] == (2, translator.tokenizer.language_id("de"))
            assert hypothesis.tokens[-1] == 2
            assert hypothesis.text == translator.tokenizer.decode(hypothesis.tokens)
            assert 1 not in hypothesis.tokens
    one = translator.translate_batch(sentences[:6], **EN_DE, beam_size=4)
    assert_same(one, [Translation(t.text, t.score, t.tokens, t.hypotheses[:1]) for t in found])


@pytest.mark.parametrize("text", ["", " ", "   ", "\t\n ", "\u3000"])
def test_nothing_to_translate(
    translator: Translator, starts: list[tuple[int, int]], text: str
) -> None:
    assert translator.translate(text, **EN_DE) == ""
    assert translator.translate([text, text], **EN_DE) == ["", ""]
    assert translator.translate_batch([text], **EN_DE) == [Translation("", 0.0, (), ())]
    assert starts == []
    found = translator.translate(["Quit", text, "Open the file."], **EN_DE)
    assert found == [translator.translate("Quit", **EN_DE), "", found[2]]
    assert found[2] == translator.translate("Open the file.", **EN_DE)
    assert starts[0][0] == 2


def test_nothing_to_translate_still_needs_a_language(translator: Translator) -> None:
    for languages in ({"source_lang": "xx", "target_lang": "de"}, {**EN_DE, "target_lang": "xx"}):
        with pytest.raises(UnknownLanguageError):
            translator.translate("", **languages)


# --- Languages -----------------------------------------------------------------------------------


def test_a_language_for_each_text(translator: Translator) -> None:
    texts = ["Open the file.", "Die Datei wurde nicht gefunden.", "El archivo ya existe.", "Quit"]
    sources, targets = ["en", "de", "es", "en"], ["fr", "en", "ru", "zh"]
    found = translator.translate_batch(texts, source_lang=sources, target_lang=targets)
    expected = [
        translator.translate_batch([text], source_lang=source, target_lang=target)[0]
        for text, source, target in zip(texts, sources, targets, strict=True)
    ]
    assert_same(found, expected)
    for translation, target in zip(found, targets, strict=True):
        assert translator.tokenizer.language_of(translation.tokens[1]) == target
    # One of the two may be shared by all.
    mixed = translator.translate(texts[:1] * 2, source_lang="en", target_lang=("fr", "zh"))
    assert mixed[0] == found[0].text
    assert mixed[1] != mixed[0]
    mixed = translator.translate(texts[1:3], source_lang=["de", "es"], target_lang="en")
    assert mixed[0] == found[1].text


@pytest.mark.parametrize("name", ["source_lang", "target_lang"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_as_many_languages_as_texts(translator: Translator, name: str, count: int) -> None:
    languages: dict[str, Any] = {**EN_DE, name: ["en"] * count}
    with pytest.raises(InvalidInputError, match=rf"{name}: .*each of 2 texts, found {count}"):
        translator.translate(["Quit", "Open"], **languages)


def test_one_text_takes_one_language(translator: Translator) -> None:
    wrong: dict[str, Any] = {**EN_DE, "target_lang": ["de", "fr"]}
    with pytest.raises(InvalidInputError, match=r"target_lang: .*each of 1 texts, found 2"):
        translator.translate("Quit", **wrong)


@pytest.mark.parametrize(
    ("code", "matches", "message"),
    [
        ("EN", ("en",), "unknown language 'EN'; did you mean 'en'?"),
        ("en-US", ("en",), "did you mean 'en'?"),
        ("zh_Hans", ("zh",), "did you mean 'zh'?"),
        ("__fr__", ("fr",), "did you mean 'fr'?"),
        ("qqq", (), "unknown language 'qqq' (supported: en, de, fr, es, ru, zh)"),
        ("pt", (), "language 'pt' has a token, but this checkpoint was not trained on it"),
        ("", (), "unknown language ''"),
    ],
)
@pytest.mark.parametrize("name", ["source_lang", "target_lang"])
def test_unknown_language(
    translator: Translator, name: str, code: str, matches: tuple[str, ...], message: str
) -> None:
    for call in (
        lambda: translator.translate("Quit", **{**EN_DE, name: code}),
        lambda: translator.translate(["Quit", "Open"], **{**EN_DE, name: ["en", code]}),
    ):
        with pytest.raises(UnknownLanguageError) as caught:
            call()
        assert caught.value.code == code
        assert caught.value.matches == matches
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("code", "match"), [("jp", "ja"), ("JP", "ja"), ("deu", "de"), ("eng", "en"), ("pt-BR", "pt")]
)
def test_near_matches_among_all_languages(tiny_bundle: Path, code: str, match: str) -> None:
    translator = Translator(tiny_bundle, lazy=True)
    assert len(translator.languages) == 100
    with pytest.raises(UnknownLanguageError, match="did you mean") as caught:
        translator.translate("Quit", source_lang="en", target_lang=code)
    assert match in caught.value.matches
    assert "100 codes" in str(caught.value)


@pytest.mark.parametrize("name", ["source_lang", "target_lang"])
@pytest.mark.parametrize("value", [None, 5, b"en"])
def test_language_of_another_kind(translator: Translator, name: str, value: Any) -> None:
    for text in ("Quit", ["Quit", "Open"]):
        with pytest.raises((InvalidInputError, UnknownLanguageError), match=r"lang"):
            translator.translate(text, **{**EN_DE, name: value})


def test_languages_are_those_the_checkpoint_was_trained_on(translator: Translator) -> None:
    assert translator.languages == ("en", "de", "fr", "es", "ru", "zh")


# --- Texts that cannot be translated -------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 5, b"Quit", ["Quit"], float("nan")])
def test_what_is_no_text_is_named(translator: Translator, value: Any) -> None:
    name = type(value).__name__
    with pytest.raises(InvalidInputError, match=rf"texts\[2\]: expected a str, found {name}"):
        translator.translate(["Quit", "Open", value], **EN_DE)


@pytest.mark.parametrize("value", ["Quit", b"Quit"])
def test_one_string_is_no_list_of_strings(translator: Translator, value: Any) -> None:
    for call in (translator.translate_batch, translator.translate_iterable):
        with pytest.raises(InvalidInputError, match=rf"found one {type(value).__name__}"):
            call(value, **EN_DE)


@pytest.mark.parametrize("value", [None, 5, b"Quit"])
def test_neither_text_nor_list(translator: Translator, value: Any) -> None:
    with pytest.raises(InvalidInputError, match=rf"text.* found .*{type(value).__name__}"):
        translator.translate(value, **EN_DE)


def long_text(translator: Translator, tokens: int) -> str:
    """A text of exactly so many tokens, language token and `</s>` included."""
    words = ["file", "copy", "save", "close", "window", "open", "name", "user", "error", "disk"]
    text = ""
    while (count := len(translator.tokenizer.encode(text, "en"))) < tokens:
        text = (text + " " + words[count % len(words)]).strip()
    assert count == tokens
    return text


def test_longest_text_is_translated(translator: Translator) -> None:
    text = long_text(translator, LIMIT)
    found = translator.translate_batch([text], **GREEDY, max_length=8)
    assert len(found[0].tokens) >= 3


def test_longer_text_is_refused(translator: Translator, starts: list[tuple[int, int]]) -> None:
    text = long_text(translator, LIMIT + 1)
    with pytest.raises(InputTooLongError, match=r"257 tokens.*at most 256.*file copy") as caught:
        translator.translate(["Quit", text], **GREEDY)
    assert (caught.value.limit, caught.value.length) == (LIMIT, LIMIT + 1)
    assert len(str(caught.value)) < 300
    # Nothing is translated before everything was checked.
    assert starts == []


def test_truncate_translates_the_beginning(
    translator: Translator, demo_checkpoint: Path, starts: list[tuple[int, int]]
) -> None:
    text = long_text(translator, LIMIT + 40)
    ids = translator.tokenizer.encode(text, "en")
    (found,) = translator.translate_batch(
        [text], **EN_DE, beam_size=2, max_length=12, truncate=True
    )
    assert starts == [(1, LIMIT)]
    model = M2M100ForConditionalGeneration.from_pretrained(
        demo_checkpoint, dtype=torch.float32
    ).eval()
    # The language token in front and the end of the sentence stay.
    cut = torch.tensor([[*ids[: LIMIT - 1], 2]])
    expected = model.generate(
        cut,
        attention_mask=torch.ones_like(cut),
        forced_bos_token_id=translator.tokenizer.language_id("de"),
        num_beams=2,
        max_length=12,
        early_stopping=True,
    )
    assert list(found.tokens) == expected[0].tolist()


def test_encode_is_what_the_model_is_given(translator: Translator) -> None:
    ids = translator.encode("Open the file.", "en")
    assert ids == translator.tokenizer.encode("Open the file.", "en")
    assert translator.encode("Open the file.", "en", truncate=True) == ids
    fitting, longer = long_text(translator, LIMIT), long_text(translator, LIMIT + 3)
    assert len(translator.encode(fitting, "en")) == LIMIT
    with pytest.raises(InputTooLongError, match=r"259 tokens"):
        translator.encode(longer, "en")
    cut = translator.encode(longer, "en", truncate=True)
    assert len(cut) == LIMIT
    assert cut[:-1] == translator.tokenizer.encode(longer, "en")[: LIMIT - 1]
    assert cut[-1] == translator.tokenizer.eos_id


def test_truncate_leaves_shorter_texts_alone(translator: Translator, sentences: list[str]) -> None:
    texts = sentences[:4]
    assert_same(
        translator.translate_batch(texts, **GREEDY, truncate=True),
        translator.translate_batch(texts, **GREEDY),
    )


# --- Options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "beam_size"),
        ({"beam_size": -1}, "beam_size"),
        ({"beam_size": 2.0}, "beam_size"),
        ({"beam_size": "2"}, "beam_size"),
        ({"num_hypotheses": 0}, "num_hypotheses"),
        ({"num_hypotheses": 6}, "num_hypotheses.*beam_size = 5"),
        ({"beam_size": 2, "num_hypotheses": 3}, "num_hypotheses.*beam_size = 2"),
        ({"max_length": LIMIT + 1}, "max_length.*256.*257"),
        ({"max_length": 2}, "max_length"),
        ({"max_length": None}, "max_length"),
        ({"min_length": 201}, "min_length.*max_length = 200"),
        ({"length_penalty": float("nan")}, "length_penalty"),
        ({"early_stopping": "always"}, "early_stopping"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"suppress_tokens": [5]}, "suppress_tokens"),
        ({"suppress_tokens": (10609,)}, "suppress"),
        ({"max_batch_tokens": 0}, "max_batch_tokens.*0"),
        ({"max_batch_tokens": "9"}, "max_batch_tokens.*'9'"),
    ],
    ids=repr,
)
def test_option_out_of_range(translator: Translator, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        translator.translate("Quit", **EN_DE, **options)
    with pytest.raises(InvalidInputError, match=message):
        # Streams say so too, and most of them before the first text is read.
        list(translator.translate_iterable(["Quit"], **EN_DE, **options))


def test_unknown_option_is_named(translator: Translator) -> None:
    wrong: dict[str, Any] = {"num_beams": 4, "beams": 2}
    for call in (translator.translate, translator.translate_batch, translator.translate_iterable):
        with pytest.raises(TypeError, match=r"unknown option beams, num_beams"):
            call(["Quit"], **EN_DE, **wrong)


def test_options_are_those_of_the_search() -> None:
    names = set(get_type_hints(SearchOptions))
    assert set(TranslateOptions.__annotations__) == names | {"max_batch_tokens", "truncate"}


def test_longest_translation(translator: Translator) -> None:
    """As many tokens as the model has positions, the last of which is never fed."""
    (found,) = translator.translate_batch(["Quit"], **GREEDY, max_length=LIMIT, min_length=LIMIT)
    assert len(found.tokens) == LIMIT
    assert found.tokens[-1] != 2


def test_defaults_come_from_the_generation_config(
    translator: Translator, demo_checkpoint: Path
) -> None:
    config = json.loads((demo_checkpoint / "generation_config.json").read_text())
    assert translator.defaults == SearchOptions(
        beam_size=config["num_beams"],
        max_length=config["max_length"],
        early_stopping=config["early_stopping"],
    )
    assert (translator.defaults.beam_size, translator.defaults.max_length) == (5, 200)
    explicit = {"beam_size": 5, "max_length": 200, "early_stopping": True, "num_hypotheses": 1}
    assert_same(
        translator.translate_batch(["Open the file."], **EN_DE),
        translator.translate_batch(["Open the file."], **EN_DE, **explicit),
    )


def edited(bundle: Path, folder: Path, **changes: Any) -> Bundle:
    """A copy without a manifest, with other generation defaults."""
    shutil.copytree(bundle, folder)
    (folder / "manifest.json").unlink()
    (folder / "generation_config.json").write_text(json.dumps(changes))
    return Bundle.open(folder)


def test_every_default_can_be_set(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = edited(
        tiny_bundle,
        tmp_path / "bundle",
        num_beams=3,
        num_return_sequences=2,
        max_length=20,
        min_length=4,
        length_penalty=0.5,
        early_stopping="never",
        no_repeat_ngram_size=2,
        repetition_penalty=1.5,
        transformers_version="4",
        forced_bos_token_id=None,
    )
    assert Translator(bundle).defaults == SearchOptions(
        beam_size=3,
        num_hypotheses=2,
        max_length=20,
        min_length=4,
        length_penalty=0.5,
        early_stopping="never",
        no_repeat_ngram_size=2,
        repetition_penalty=1.5,
    )


def test_where_nothing_is_set(tiny_bundle: Path, tmp_path: Path) -> None:
    """What every published checkpoint of the family sets, within the 64 positions of this one."""
    bundle = edited(tiny_bundle, tmp_path / "bundle", max_length=None)
    assert Translator(bundle).defaults == SearchOptions(
        beam_size=5, max_length=64, early_stopping=True
    )


# --- Batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beam_size", "tokens", "sizes"),
    [(1, 96, [3, 3, 3, 1]), (1, 127, [3, 3, 3, 1]), (1, 128, [4, 4, 2]), (3, 96, [1] * 10)],
)
def test_max_batch_tokens_cuts_batches(
    translator: Translator,
    starts: list[tuple[int, int]],
    beam_size: int,
    tokens: int,
    sizes: list[int],
) -> None:
    """A short source counts 32 tokens, since its row of logits costs what it costs."""
    texts = ["Open the file."] * 5 + ["Quit"] * 5
    translator.translate(texts, **EN_DE, beam_size=beam_size, max_batch_tokens=tokens, max_length=4)
    assert [size for size, _ in starts] == sizes
    # Longest first, so that memory runs out at once or not at all.
    lengths = [length for _, length in starts]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("limit", [40, 150, 400, 1000])
@pytest.mark.parametrize("beam_size", [1, 2])
def test_no_batch_is_larger_than_asked_for(
    translator: Translator, starts: list[tuple[int, int]], limit: int, beam_size: int
) -> None:
    lengths = [5, 90, 33, 8, 60, 12, 90, 7, 41, 120]
    texts = [long_text(translator, length) for length in lengths]
    translator.translate(texts, **EN_DE, beam_size=beam_size, max_batch_tokens=limit, max_length=4)
    assert sum(size for size, _ in starts) == len(texts)
    for size, length in starts:
        # One sentence is always taken, however long.
        assert size == 1 or size * length * beam_size <= limit
    assert max(length for _, length in starts) == 120


def test_result_does_not_depend_on_the_batch(
    translator: Translator, sentences: list[str], starts: list[tuple[int, int]]
) -> None:
    options = {**EN_DE, "beam_size": 2, "num_hypotheses": 2}
    expected = [translator.translate_batch([text], **options)[0] for text in sentences]
    del starts[:]
    whole = translator.translate_batch(sentences, **options, max_batch_tokens=1 << 20)
    assert_same(whole, expected)
    assert [size for size, _ in starts] == [40]
    order = random.Random(4).sample(range(40), 40)
    shuffled = [sentences[i] for i in order]
    found = translator.translate_batch(shuffled, **options, max_batch_tokens=500)
    assert_same(found, [expected[i] for i in order])
    assert len(starts) > 5


def test_many_threads_share_a_translator(translator: Translator, sentences: list[str]) -> None:
    texts = sentences[:16]
    options = {**EN_DE, "beam_size": 2, "max_length": 12}
    expected = translator.translate_batch(texts, **options)

    def translate(number: int) -> list[Translation]:
        # Each thread has the texts in an order of its own, and two at a time.
        turned = texts[2 * number :] + texts[: 2 * number]
        found: list[Translation] = []
        for start in range(0, len(turned), 2):
            found += translator.translate_batch(turned[start : start + 2], **options)
        return found[len(texts) - 2 * number :] + found[: len(texts) - 2 * number]

    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(translate, range(8)):
            assert_same(found, expected)


# --- Streams -------------------------------------------------------------------------------------


class Endless:
    """Texts without end, and how many were read."""

    def __init__(self, texts: list[str]) -> None:
        self.texts, self.read = texts, 0

    def __iter__(self) -> Iterator[str]:
        for text in itertools.cycle(self.texts):
            self.read += 1
            yield text


def test_stream_reads_ahead_a_constant_number(translator: Translator, sentences: list[str]) -> None:
    source = Endless(sentences)
    stream = translator.translate_iterable(source, **GREEDY, max_length=5, read_ahead=7)
    assert source.read == 0
    for number in range(1, 30):
        next(stream)
        assert source.read == -(-number // 7) * 7


def test_stream_reads_nothing_before_it_is_asked(translator: Translator) -> None:
    source = Endless(["Quit"])
    stream = translator.translate_iterable(source, **GREEDY)
    assert source.read == 0
    first = next(stream)
    read = source.read
    assert 2 <= read <= 4096
    assert next(stream) == first
    assert source.read == read


@pytest.mark.parametrize("read_ahead", [1, 4, 13, 100])
def test_stream_equals_batch(translator: Translator, sentences: list[str], read_ahead: int) -> None:
    texts = [*sentences[:6], "", *sentences[6:12]]
    stream = translator.translate_iterable(iter(texts), **GREEDY, read_ahead=read_ahead)
    assert_same(list(stream), translator.translate_batch(texts, **GREEDY))


def test_stream_of_languages(translator: Translator) -> None:
    texts = ["Open the file.", "Die Datei wurde nicht gefunden.", "Quit"]
    sources, targets = ["en", "de", "en"], ["fr", "en", "zh"]
    expected = translator.translate_batch(texts, source_lang=sources, target_lang=targets)
    for read_ahead in (1, 2, 10):
        found = translator.translate_iterable(
            iter(texts),
            source_lang=iter(sources),
            # A stream of languages may be endless, or longer than the texts.
            target_lang=itertools.cycle(targets),
            read_ahead=read_ahead,
        )
        assert_same(list(found), expected)


@pytest.mark.parametrize("name", ["source_lang", "target_lang"])
@pytest.mark.parametrize("read_ahead", [1, 3, 10])
def test_stream_of_languages_that_ends_early(
    translator: Translator, name: str, read_ahead: int
) -> None:
    """The texts that are left must not vanish."""
    languages: dict[str, Any] = {**GREEDY, name: iter([GREEDY[name]] * 2)}
    stream = translator.translate_iterable(
        ["Quit"] * 4, **languages, max_length=4, read_ahead=read_ahead
    )
    with pytest.raises(InvalidInputError, match=rf"{name}: .*2"):
        list(stream)


def test_empty_stream(translator: Translator) -> None:
    assert list(translator.translate_iterable([], **EN_DE)) == []
    assert (
        list(translator.translate_iterable(iter(["", " "]), **EN_DE))
        == [Translation("", 0.0, (), ())] * 2
    )


@pytest.mark.parametrize("read_ahead", [0, -1])
def test_read_ahead_out_of_range(translator: Translator, read_ahead: int) -> None:
    with pytest.raises(InvalidInputError, match=rf"read_ahead.*{read_ahead}"):
        translator.translate_iterable(["Quit"], **EN_DE, read_ahead=read_ahead)


def test_stream_names_the_place_of_an_error(translator: Translator) -> None:
    """Counted from the stream's beginning, not from what was read last."""
    texts: list[Any] = ["Quit", "", "Open", "Close", None]
    stream = translator.translate_iterable(texts, **GREEDY, max_length=4, read_ahead=2)
    for _ in range(4):
        next(stream)
    with pytest.raises(InvalidInputError, match=r"texts\[4\]: expected a str, found NoneType"):
        next(stream)


def test_options_of_a_stream_are_checked_at_once(translator: Translator) -> None:
    source = Endless(["Quit"])
    with pytest.raises(InvalidInputError, match="beam_size"):
        translator.translate_iterable(source, **EN_DE, beam_size=0)
    assert source.read == 0
