"""The manual's calculation of a crawl begins with what was measured."""

from __future__ import annotations

import ast
import json
import re
import statistics
from pathlib import Path


def test_seconds_are_those_of_the_results(repository: Path) -> None:
    measured = {}
    for name in ("speed", "speed_fp32"):
        results = repository / "benchmarks" / "results" / f"{name}.json"
        for row in json.loads(results.read_text(encoding="utf-8"))["rows"]:
            if (row["batch_size"], row["source_length"]) == (8, 32):
                seconds = round(statistics.median(row["samples"]), 2)
                measured[row["engine"], row["beam_size"]] = seconds
    page = (repository / "docs" / "cluster.md").read_text(encoding="utf-8")
    found = re.search(r"^SECONDS = (\{.*?^\})", page, flags=re.M | re.S)
    assert found is not None
    written = ast.literal_eval(found[1])
    assert len(written) == 8
    wanted = {key: measured[f"ours {key[0]}", key[1]] for key in written}
    assert written == wanted
