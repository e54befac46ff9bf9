"""What a job did, in numbers: sums over shards, by actor and by pair of languages, and skew."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

__all__ = ["summarize"]


def summarize(facts: Sequence[dict[str, Any]], seconds: float, run: int) -> dict[str, Any]:
    """Sums up what finished shards took.

    Args:
        facts: of each shard, as the workers wrote them.
        seconds: of this run, from its beginning.
        run: shards that this run translated; the others were finished before.

    Returns:
        `rows`, `sentences` (translated), `errors`, `flagged`, tokens of both sides; `seconds` and
        `shards_run` of this run, the others over all runs; `span_seconds` from the beginning of
        the first shard to the end of the last; `worker_seconds` over all actors;
        `actors` with each one's sentences a second; `languages`; and `skew`: the shards' seconds,
        median and most, and the busiest actor's share over the mean.
    """
    languages: dict[str, dict[str, int]] = {}
    actors: dict[str, dict[str, Any]] = {}
    for shard in facts:
        for pair, counts in shard["counts"].items():
            _add(languages.setdefault(pair, {}), counts)
        actor = actors.setdefault(
            shard["actor"], {"node": shard["node"], "shards": 0, "sentences": 0, "seconds": 0.0}
        )
        actor["shards"] += 1
        actor["sentences"] += sum(each["sentences"] for each in shard["counts"].values())
        actor["seconds"] += shard["seconds"]
    for actor in actors.values():
        actor["sentences_a_second"] = _rate(actor["sentences"], actor["seconds"])
    unread = sum(shard["unread"] for shard in facts)
    total: dict[str, int] = {}
    for counts in languages.values():
        _add(total, counts)
    return {
        "rows": sum(shard["rows"] for shard in facts),
        "sentences": total.get("sentences", 0),
        "errors": total.get("errors", 0) + unread,
        "flagged": total.get("flagged", 0),
        "source_tokens": sum(shard["stats"]["source_tokens"] for shard in facts),
        "target_tokens": sum(shard["stats"]["target_tokens"] for shard in facts),
        "seconds": round(seconds, 3),
        "span_seconds": _span(facts),
        "worker_seconds": round(sum(shard["seconds"] for shard in facts), 3),
        "shards": len(facts),
        "shards_run": run,
        "actors": actors,
        "languages": dict(sorted(languages.items())),
        "skew": _skew([s["seconds"] for s in facts], [a["seconds"] for a in actors.values()]),
    }


def _add(total: dict[str, int], counts: dict[str, int]) -> None:
    for name, count in counts.items():
        total[name] = total.get(name, 0) + count


def _span(facts: Sequence[dict[str, Any]]) -> float:
    if not facts:
        return 0.0
    began: float = min(shard["ended"] - shard["seconds"] for shard in facts)
    ended: float = max(shard["ended"] for shard in facts)
    return round(ended - began, 3)


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 3) if seconds else 0.0


def _skew(shards: list[float], actors: list[float]) -> dict[str, float]:
    if not shards or not sum(actors):
        return {}
    return {
        "shard_seconds_median": round(statistics.median(shards), 3),
        "shard_seconds_most": round(max(shards), 3),
        "busiest_actor_over_mean": round(max(actors) / statistics.mean(actors), 3),
    }
