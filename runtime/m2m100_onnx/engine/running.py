"""A running batch: sentences of many requests that advance together, one token a step.

On native graphs they join and leave at any step, for every row has a past length of its own. On
others a batch runs to its end. Knows searches and places; knows no queue and no text.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from m2m100_onnx.engine.batches import Batch, Sentence
from m2m100_onnx.engine.generator import Search, search_of
from m2m100_onnx.model.fused import FusedState
from m2m100_onnx.model.joint import JointState, Seat
from m2m100_onnx.model.model import Model
from m2m100_onnx.options import SearchOptions
from m2m100_onnx.search.hypothesis import Hypothesis
from m2m100_onnx.search.state import DecoderState

__all__ = ["Running"]

_T = TypeVar("_T")
_LONG_PROMPT = 4
"""Tokens of a prompt beyond which a run of its own is faster than steps with the others."""


@dataclass
class _Cohort(Generic[_T]):
    """Sentences that began together.

    Attributes:
        search: their search.
        tickets: what the caller knows each of them by.
        seat: their side of the joint state; None where they have the graphs to themselves.
        fresh: whether no step was made.
    """

    search: Search
    tickets: list[_T]
    seat: Seat | None
    fresh: bool = True


class Running(Generic[_T]):
    """Sentences that are being searched, in one thread."""

    def __init__(self, model: Model) -> None:
        """Takes the model; no graph is opened."""
        self._model = model
        self._cohorts: list[_Cohort[_T]] = []
        self._joint: JointState | None = None

    @property
    def count(self) -> int:
        """Number of sentences."""
        return sum(len(cohort.search.live) for cohort in self._cohorts)

    @property
    def joins(self) -> bool:
        """Whether sentences may join while others run."""
        return self._model.native

    def group_of(self, options: SearchOptions, sentence: Sentence) -> Hashable:
        """Returns what sentences must have in common to run together."""
        if not self._model.native:
            return options, _cohort_of(sentence)
        # One run ranks all rows, with one penalty and one kind of softmax.
        greedy, drawn = options.beam_size == 1, options.top_k if options.do_sample else None
        return options.rows, greedy, options.repetition_penalty, drawn

    def join(
        self,
        joiners: Sequence[tuple[_T, Sentence, SearchOptions]],
        *,
        serial: bool,
    ) -> None:
        """Encodes sentences of the group, and begins their searches.

        Args:
            joiners: what the caller knows each by, the sentence, and its options.
            serial: whether runs stay in this thread.

        Raises:
            M2M100Error: those of `Generator.run`; then none of them has joined.
        """
        cohorts: dict[Hashable, list[tuple[_T, Sentence, SearchOptions]]] = {}
        for joiner in joiners:
            cohorts.setdefault((joiner[2], _cohort_of(joiner[1])), []).append(joiner)
        config = self._model.bundle.config
        begun = []
        for some in cohorts.values():
            batch = Batch.of([sentence for _, sentence, _ in some], config.pad_token_id)
            state: Any = self._begin(batch, serial=serial)
            seat = state if isinstance(state, Seat) else None
            search = search_of(state, batch, config.eos_token_id, some[0][2])
            begun.append(_Cohort(search, [ticket for ticket, _, _ in some], seat))
        self._cohorts += begun

    def _begin(self, batch: Batch, *, serial: bool) -> DecoderState:
        """Encodes sources, and lets their prompts be fed.

        A short prompt is fed with the tokens of others, where there are some: runs of its own would
        read all weights for it. A long one is fed in one run.
        """
        if not self._model.native:
            return self._model.begin(*batch.arrays, serial=serial)
        if self._joint is None or not self._joint.count or batch.prompt.shape[1] > _LONG_PROMPT:
            state = self._model.begin(*batch.arrays, serial=serial)
            assert isinstance(state, FusedState)
            return Seat.alone(state)
        source = self._model.encode_source(batch.input_ids, batch.attention_mask, serial=serial)
        return Seat.among(self._joint, source, batch.attention_mask, batch.prompt)

    def step(self, *, serial: bool) -> list[tuple[_T, list[Hypothesis]]]:
        """Advances every sentence by one token, and returns those that ended with their results.

        Raises:
            M2M100Error: those of `Generator.run`.
        """
        for cohort in self._cohorts:
            if cohort.seat is not None and cohort.seat.prompted:
                cohort.seat.next_of_prompt()
        # A search asks when all of its prompt has been fed, or is about to be.
        asked = [(cohort, cohort.search.ask()) for cohort in self._cohorts if not _waits(cohort)]
        own = [(cohort, ranking) for cohort, ranking in asked if self._ranks_alone(cohort)]
        joint = [(cohort, ranking) for cohort, ranking in asked if not self._ranks_alone(cohort)]
        ended = []
        if joint or len(asked) < len(self._cohorts):
            answers = self._run(joint, serial)
            for (cohort, _), ranked in zip(joint, answers, strict=True):
                ended += self._ended(cohort, cohort.search.answer(ranked))
        for cohort, ranking in own:
            state: Any = cohort.seat or cohort.search.state
            ended += self._ended(cohort, cohort.search.answer(state.best(ranking)))
            cohort.fresh = False
        self._leave()
        return ended

    def drop(self, gone: Callable[[_T], bool]) -> None:
        """Ends sentences without a result.

        Args:
            gone: says of what the caller knows a sentence by whether nobody waits for it.
        """
        for cohort in self._cohorts:
            for place in cohort.search.live:
                if gone(cohort.tickets[place]):
                    cohort.search.drop(place)
        self._leave()

    def _run(self, joint: list[tuple[_Cohort[_T], Any]], serial: bool) -> list[Any]:
        """Feeds the rows of all cohorts that have begun in one run, and ranks them."""
        seats = []
        for cohort, ranking in joint:
            assert cohort.seat is not None
            if not cohort.seat.seated:
                if self._joint is None:
                    beams = cohort.seat.own_rows // len(cohort.search.live)
                    self._joint = JointState(self._model.sessions, self._model.files, beams)
                cohort.seat.sit(self._joint)
            seats.append((cohort.seat, ranking))
        assert self._joint is not None
        self._joint.feed(serial=serial)
        return self._joint.best(seats) if seats else []

    def _ranks_alone(self, cohort: _Cohort[_T]) -> bool:
        """Says whether the next step runs on the state that the cohort began with.

        So it does until another one joins it: a joint state takes longer.
        """
        if cohort.seat is None or cohort.seat.seated:
            return cohort.seat is None
        return cohort.fresh or len(self._cohorts) == 1

    def _ended(
        self, cohort: _Cohort[_T], places: Sequence[int]
    ) -> list[tuple[_T, list[Hypothesis]]]:
        return [(cohort.tickets[n], cohort.search.hypotheses(n)) for n in places]

    def _leave(self) -> None:
        """Lets go of cohorts that have ended, and of all buffers with the last."""
        for cohort in self._cohorts:
            if cohort.seat is not None and not cohort.search.live:
                cohort.seat.stand()
        self._cohorts = [cohort for cohort in self._cohorts if cohort.search.live]
        if not self._cohorts:
            self._joint = None


def _waits(cohort: _Cohort[Any]) -> bool:
    """Says whether more of a prompt is to be fed before the search has its first step."""
    return cohort.seat is not None and cohort.seat.prompted


def _cohort_of(sentence: Sentence) -> Hashable:
    """Returns what sentences with equal options must have in common to be one search."""
    return len(sentence.prompt), sentence.given, sentence.least, sentence.limit is None
