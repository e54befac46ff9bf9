"""Errors as values: they cross the border of a process whole."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from m2m100_onnx import errors
from m2m100_onnx.errors import InputTooLongError, M2M100Error, OverloadedError, UnknownLanguageError

STOPPED = {"StoppedError", "DeadlineExceeded", "Cancelled"}
OWN = {"InputTooLongError", "OverloadedError", "UnknownLanguageError"}
OTHERS = sorted(set(errors.__all__) - OWN - STOPPED)
RAISED = [
    OverloadedError(retry_after=1.5, queued=9),
    InputTooLongError(limit=8, length=9, text="a" * 70),
    UnknownLanguageError("en-us", ["en", "de"], ["en"]),
    UnknownLanguageError("fr", ["en", "de"], untrained=True),
    *(getattr(errors, name)("why", {1: "a translation"}) for name in sorted(STOPPED)),
    *(getattr(errors, name)("what was expected and what was found") for name in OTHERS),
]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_errors_are_copied_and_pickled_whole(error: M2M100Error) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        for again in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
            assert type(again) is type(error)
            assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))
    assert str(error)


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_errors_are_rebuilt_from_their_arguments(error: M2M100Error) -> None:
    """As Celery's JSON backend does."""
    again = type(error)(*error.args)
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_an_error_about_one_text_says_which(error: M2M100Error) -> None:
    whole = str(error)
    placed = copy.copy(error)
    placed.position = 7
    assert str(placed) == f"texts[7]: {whole}"
    assert placed.message == whole
    assert str(pickle.loads(pickle.dumps(placed))) == str(placed)


def refuse() -> None:
    raise UnknownLanguageError("ge", ["de", "en"])


def test_a_pool_of_processes_passes_them_on() -> None:
    # One that could not read the error would say that the pool is broken.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with pytest.raises(UnknownLanguageError, match="ge") as found:
            pool.submit(refuse).result(60)
        assert found.value.code == "ge"
        assert pool.submit(len, "abc").result(60) == 3
