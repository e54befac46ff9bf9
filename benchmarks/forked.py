"""Memory of workers forked from one process: `forked.py FOLDER COUNT` and a request on stdin.

The process imports the runtime and reads the vocabulary, then forks. Each worker opens the graphs
and translates twice, all of them at once. Printed, as JSON, is what each has, the first process's
memory before the workers'.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from multiprocessing.synchronize import Barrier
from typing import Any

from engines import ours
from m2m100_onnx.cli.benchmark.worker import Translate, memory


def work(translate: Translate, request: dict[str, Any], measured: Barrier) -> None:
    """Translates, and stays until the first process has measured."""
    for _ in range(2):
        for batch in request["batches"]:
            translate(batch, **request["options"])
    measured.wait()
    measured.wait()


def main() -> None:
    """Forks, waits, measures."""
    count, request = int(sys.argv[2]), json.load(sys.stdin)
    translate = ours(lazy=True)(folder=sys.argv[1], threads=None)
    context = multiprocessing.get_context("fork")
    measured = context.Barrier(count + 1)
    workers = [
        context.Process(target=work, args=(translate, request, measured)) for _ in range(count)
    ]
    for worker in workers:
        worker.start()
    measured.wait(timeout=300)
    found = [memory(), *(memory(str(worker.pid)) for worker in workers)]
    measured.wait(timeout=300)
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise SystemExit(f"a worker ended with {worker.exitcode}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
