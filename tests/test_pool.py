"""Several bundles in one process: routes by languages, and a budget for memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m2m100_onnx import (
    BundleError,
    ClosedError,
    InvalidInputError,
    TranslatorPool,
    UnknownLanguageError,
)
from m2m100_onnx.bundle.folder import WEIGHTS_FILE
from m2m100_onnx_export import export

TEXT = "Open the file."


@pytest.fixture(scope="module")
def bundles(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo model for three sets of languages."""
    folder = tmp_path_factory.mktemp("pool")
    for languages in ("en,de", "en,fr", "en,es,ru"):
        target = folder / languages.replace(",", "-")
        export(
            demo_checkpoint,
            target,
            languages=languages.split(","),
            precision="int8",
            verify_outputs=False,
        )
    return {path.name: path for path in folder.iterdir()}


def opened(pool: TranslatorPool) -> list[bool]:
    """Which bundles have open graphs."""
    return [bool(translator.model.sessions._sessions) for translator in pool.translators]


def test_each_pair_has_its_translator(bundles: dict[str, Path]) -> None:
    with TranslatorPool([bundles["en-de"], bundles["en-fr"], bundles["en-es-ru"]]) as pool:
        assert opened(pool) == [False, False, False]
        assert sorted(pool.languages) == ["de", "en", "es", "fr", "ru"]
        for target, place in (("de", 0), ("fr", 1), ("ru", 2)):
            translator = pool.route("en", target)
            assert translator is pool.translators[place]
            assert translator.translate(TEXT, source_lang="en", target_lang=target)
        assert opened(pool) == [True, True, True]
        with pytest.raises(UnknownLanguageError, match="'zh'"):
            pool.route("en", "zh")
        with pytest.raises(UnknownLanguageError, match=r"'fr'.*supported: de, en\)"):
            pool.route("de", "fr")
    with pytest.raises(ClosedError):
        pool.translators[0].translate(TEXT, source_lang="en", target_lang="de")


def test_what_was_used_least_recently_is_closed(bundles: dict[str, Path]) -> None:
    names = ["en-de", "en-fr", "en-es-ru"]
    sizes = [(bundles[name] / WEIGHTS_FILE).stat().st_size for name in names]
    memory = sum(sizes) - 1  # Two of them.
    with TranslatorPool([bundles[name] for name in names], memory=memory) as pool:

        def use(target: str) -> list[bool]:
            translator = pool.route("en", target)
            assert translator.submit(TEXT, source_lang="en", target_lang=target).result(60).text
            assert pool.budget.used <= memory
            return opened(pool)

        assert use("de") == [True, False, False]
        assert use("fr") == [True, True, False]
        assert use("de") == [True, True, False]
        assert use("ru") == [True, False, True]
        assert use("fr") == [False, True, True]
        assert use("de")[0]


def test_calls_that_run_are_not_disturbed(bundles: dict[str, Path]) -> None:
    names = ["en-de", "en-fr"]
    size = max((bundles[name] / WEIGHTS_FILE).stat().st_size for name in names)
    with TranslatorPool([bundles[name] for name in names], memory=size) as pool:
        wanted = {
            target: pool.route("en", target).translate(TEXT, source_lang="en", target_lang=target)
            for target in ("de", "fr")
        }
        found: list[tuple[str, str]] = []

        def call(target: str) -> None:
            for _ in range(8):
                translator = pool.route("en", target)
                text = translator.translate(TEXT, source_lang="en", target_lang=target)
                found.append((target, text))

        threads = [threading.Thread(target=call, args=(code,)) for code in ("de", "fr") * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 32
        assert all(text == wanted[target] for target, text in found)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda _: TranslatorPool([]), InvalidInputError, "bundles: expected a list of one"),
        (lambda b: TranslatorPool(str(b)), InvalidInputError, "bundles: expected a list of one"),
        (lambda b: TranslatorPool([b], memory=5), InvalidInputError, "memory: .*found 5"),
        (lambda b: TranslatorPool([b], memory=0), InvalidInputError, "memory: .*found 0"),
        (lambda b: TranslatorPool([b, b / "none"]), BundleError, "none"),
    ],
)
def test_bad_input(
    bundles: dict[str, Path], make: Callable[[Any], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(bundles["en-de"])
