"""One server for each file of tests, with the flags that the file names in `FLAGS`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import Server, serving


@pytest.fixture(scope="module")
def server(
    request: pytest.FixtureRequest, demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    flags = getattr(request.module, "FLAGS", ())
    with serving(demo_bundle, folder, *flags) as running:
        yield running
    # Whatever the tests did, nothing failed that nobody expected.
    assert [line for line in running.lines() if line["message"] == "a request failed"] == []
