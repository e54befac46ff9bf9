"""Sums over shards, against numbers that were added up by hand."""

from __future__ import annotations

from typing import Any

from m2m100_onnx.jobs.summary import summarize


def shard(
    actor: str, seconds: float, ended: float, **pairs: tuple[int, int, int]
) -> dict[str, Any]:
    counts = {
        pair.replace("_", "-"): {
            "sentences": good,
            "errors": bad,
            "flagged": flagged,
            "characters": 10 * good,
            "target_tokens": 3 * good,
        }
        for pair, (good, bad, flagged) in pairs.items()
    }
    return {
        "rows": 1 + sum(good + bad for good, bad, _ in pairs.values()),
        "unread": 1,
        "actor": actor,
        "node": f"node of {actor}",
        "stats": {"source_tokens": 100, "target_tokens": 200},
        "counts": counts,
        "seconds": seconds,
        "ended": ended,
    }


def test_sums() -> None:
    facts = [
        shard("a", 2.0, 102.0, en_de=(8, 1, 2)),
        shard("a", 4.0, 106.0, en_de=(4, 0, 0), fr_de=(6, 0, 1)),
        shard("b", 3.0, 103.5, fr_de=(9, 2, 0)),
    ]
    found = summarize(facts, 7.25, 2)
    assert (found["rows"], found["sentences"], found["errors"], found["flagged"]) == (33, 27, 6, 3)
    assert (found["source_tokens"], found["target_tokens"]) == (300, 600)
    assert (found["seconds"], found["span_seconds"], found["worker_seconds"]) == (7.25, 6.0, 9.0)
    assert (found["shards"], found["shards_run"]) == (3, 2)
    assert found["actors"]["a"] == {
        "node": "node of a",
        "shards": 2,
        "sentences": 18,
        "seconds": 6.0,
        "sentences_a_second": 3.0,
    }
    assert found["languages"]["en-de"]["sentences"] == 12
    assert found["languages"]["fr-de"]["errors"] == 2
    assert found["skew"] == {
        "shard_seconds_median": 3.0,
        "shard_seconds_most": 4.0,
        "busiest_actor_over_mean": 1.333,
    }


def test_nothing_sums_up_to_nothing() -> None:
    found = summarize([], 0.5, 0)
    assert (found["rows"], found["actors"], found["skew"]) == (0, {}, {})
