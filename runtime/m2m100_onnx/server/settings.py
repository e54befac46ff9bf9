"""What an operator of the server may set: limits once each, with type, range, default and help.

`m2m100 serve` makes its flags from the fields of `Limits`. Knows values and no requests.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from m2m100_onnx.option import Option, option

__all__ = ["LIMITS", "Limits", "Settings"]


@dataclass(frozen=True)
class Limits:
    """What a request may ask for, and what the server does at the same time.

    Raises:
        InvalidInputError: a value has the wrong type or is out of range.
    """

    body_bytes: int = option(1 << 20, "Largest body of a request, in bytes.", (1, 1 << 30))
    characters: int = option(20_000, "Most characters of a request, all texts.", (1, 1 << 30))
    file_characters: int = option(200_000, "Most characters of a file.", (1, 1 << 30))
    texts: int = option(128, "Most texts of a request.", (1, 1 << 20))
    alternatives: int = option(5, "Most alternatives that a request may ask for.", (0, 100))
    beams: int = option(10, "Most beams, or samples, that a request may ask for.", (1, 1024))
    requests_per_minute: int | None = option(
        None, "Most requests of a client in a minute; no limit by default.", (1, 1_000_000)
    )
    memory: int | None = option(
        None,
        "Bytes of weights that are open at the same time: of several bundles, those that were used "
        "least recently are closed until they are used again; no limit by default.",
        (1, 1 << 50),
    )
    calls: int = option(1024, "Most calls that run or wait; further ones get 503.", (1, 100_000))
    connections: int = option(1024, "Most connections; further ones are closed.", (1, 1_000_000))
    deadline: float = option(60.0, "Seconds after which a request ends.", (0.001, 86_400.0))
    file_deadline: float = option(
        600.0, "Seconds after which a file's translation ends.", (0.001, 86_400.0)
    )
    file_minutes: float = option(
        30.0, "Minutes for which a translated file can be fetched.", (0.001, 10_000.0)
    )
    file_bytes: int = option(
        1 << 28, "Most bytes of translated files, all clients'; further ones get 503.", (1, 1 << 50)
    )
    receive_seconds: float = option(
        10.0, "Seconds in which headers must come, and then the body.", (0.1, 3600.0)
    )
    drain_seconds: float = option(
        30.0, "Seconds that running requests get when the server ends.", (0.1, 86_400.0)
    )

    def __post_init__(self) -> None:
        for name, row in LIMITS.items():
            object.__setattr__(self, name, row.check(getattr(self, name)))


LIMITS = {
    spec.name: Option(spec.name, str(spec.type), spec.default, **spec.metadata)
    for spec in fields(Limits)
}
"""The table, in the order in which help and manual list it."""


@dataclass(frozen=True)
class Settings:
    """How the server behaves.

    Attributes:
        limits: what a request may ask for.
        api_keys: file of hashed API keys; None lets everyone in.
        cors_origins: web origins whose pages may call the server; none by default.
        suggestions: file that suggested translations are added to; None switches them off.
        files: whether files are translated; their translations are kept on disk for a while.
        log_texts: whether texts and translations are logged.
        traces: whether spans are sent, as the `OTEL_*` variables say.
    """

    limits: Limits = Limits()
    api_keys: Path | None = None
    cors_origins: tuple[str, ...] = ()
    suggestions: Path | None = None
    files: bool = True
    log_texts: bool = False
    traces: bool = False
