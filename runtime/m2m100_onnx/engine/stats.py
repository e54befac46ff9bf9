"""What calls did and how long that took. Knows numbers, and no text."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["Stats"]


@dataclass
class Stats:
    """Counts and times of the calls that it was given to.

        stats = Stats()
        translator.translate(texts, source_lang="en", target_lang="de", stats=stats)
        print(stats.target_tokens / stats.search_seconds, "tokens a second")

    A call adds to what is there, also when it ends with an error. Calls that run at the same time
    need one each.

    Attributes:
        texts: texts that were translated, empty ones included.
        errors: texts that could not be translated, where the call went on without them.
        characters: characters of the texts.
        source_tokens: tokens that the encoder read, without padding.
        target_tokens: tokens of the best hypotheses, start and language token included.
        batches: batches that were searched.
        encode_seconds: time for text to tokens.
        search_seconds: time for the model and the search.
        decode_seconds: time for tokens to text.
        queue_seconds: time that what was submitted waited for its first step.
    """

    texts: int = 0
    errors: int = 0
    characters: int = 0
    source_tokens: int = 0
    target_tokens: int = 0
    batches: int = 0
    encode_seconds: float = 0.0
    search_seconds: float = 0.0
    decode_seconds: float = 0.0
    queue_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Time of the three parts of the work; who waits, reads or writes is not in it."""
        return self.encode_seconds + self.search_seconds + self.decode_seconds

    def add(self, other: Stats) -> None:
        """Adds the numbers of another."""
        for name in (spec.name for spec in fields(self)):
            setattr(self, name, getattr(self, name) + getattr(other, name))
