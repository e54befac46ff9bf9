"""A job whose input, output and bundle lie in an object store: S3, as moto serves it here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import FLAGS, check, expected, make_rows, run

from m2m100_onnx import Translator

pytestmark = pytest.mark.long


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket; workers find its server by their environment."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host.replace('0.0.0.0', '127.0.0.1')}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    system = s3fs.S3FileSystem(skip_instance_cache=True)
    system.mkdir("bucket")
    yield system
    server.stop()


def test_everything_lies_in_a_bucket(
    s3: Any, bundle: Path, translator: Translator, sentences: list[str]
) -> None:
    from ray.cluster_utils import Cluster

    rows = make_rows(sentences[:30], 150, every=19)
    lines = [json.dumps(row) + "\n" for row in rows]
    s3.pipe_file("bucket/in/a.jsonl", "".join(lines[:100]).encode())
    s3.pipe_file("bucket/in/b.jsonl", "".join(lines[100:]).encode())
    s3.put(f"{bundle}/", "bucket/bundle", recursive=True)
    # Workers have the environment of the processes that start them.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=1, env_vars=dict(os.environ))
    cluster.wait_for_nodes()
    try:
        argv = ("--input", "s3://bucket/in", "--output", "s3://bucket/out", "--format", "jsonl")
        argv += ("-m", "s3://bucket/bundle", *FLAGS, "--address", cluster.address)
        argv += ("--source-lang-column", "lang", "--target-lang", "de", "--shard-rows", 40)
        done = run(*argv)
        assert done.returncode == 0, done.stderr
        check(rows, output_of(s3), expected(translator, rows))
        again = run(*argv)
        assert again.returncode == 2
        assert "output: s3://bucket/out: expected no such folder" in again.stderr
        s3.invalidate_cache()
        s3.rm("bucket/out/part-00000-000001.jsonl")
        resumed = run(*argv, "--resume")
        assert resumed.returncode == 0, resumed.stderr
        assert json.loads(resumed.stdout)["shards_run"] == 1
        check(rows, output_of(s3), expected(translator, rows))
    finally:
        cluster.shutdown()


def output_of(s3: Any) -> list[dict[str, Any]]:
    s3.invalidate_cache()
    paths = sorted(path for path in s3.ls("bucket/out") if "/part-" in path)
    left = [path for path in s3.find("bucket/out") if path.endswith((".begun", ".partial"))]
    assert left == []
    return [json.loads(line) for path in paths for line in s3.cat_file(path).splitlines()]
