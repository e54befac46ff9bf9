"""Memory of workers forked from one process: `forked.py FOLDER COUNT` and a request on stdin.

The process imports the runtime and reads the vocabulary, then forks; each worker opens the graphs
and translates twice, all of them at once. Printed, as JSON, is what each has, itself the first.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from engines import Ours, memory


def work(engine: Ours, request: dict[str, Any], measured: Barrier) -> None:
    """What a worker does: it translates, and stays until it has been measured."""
    for _ in range(2):
        engine.translate(request["source"], request["beam_size"], request["tokens"])
    measured.wait()
    measured.wait()


def main() -> None:
    """Forks, waits, measures."""
    count, request = int(sys.argv[2]), json.load(sys.stdin)
    engine = Ours(lazy=True)
    engine.load(Path(sys.argv[1]), None)
    context = multiprocessing.get_context("fork")
    measured = context.Barrier(count + 1)
    workers = [context.Process(target=work, args=(engine, request, measured)) for _ in range(count)]
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
