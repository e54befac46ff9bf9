"""A whole job on a Ray cluster: files in, files out, a shard at a time, resumed where it ended.

Ray Data gives the pool of actors, hands them shards, and runs a shard again whose actor or node has
died. Ours is what it does not promise: a shard's output appears whole or not at all, finished
shards are not run again, and an error of a node names it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from m2m100_onnx.bundle.identity import identity_of
from m2m100_onnx.errors import InvalidInputError, JobError, M2M100Error
from m2m100_onnx.jobs.bundles import absolute, is_uri, node_name
from m2m100_onnx.jobs.columns import Columns
from m2m100_onnx.jobs.ray_cluster import actors_for, connected, remote_cause
from m2m100_onnx.jobs.ray_data import TranslateBatch
from m2m100_onnx.jobs.shards import FORMATS, Shard, input_files, read_shard, shards_of
from m2m100_onnx.jobs.store import RECORD, SUMMARY, Store
from m2m100_onnx.jobs.summary import summarize

__all__ = ["Job", "Progress", "run"]

Progress = Callable[[int, int], None]
"""Called with the rows that are done and all rows, finished shards of earlier runs included."""
_ATTEMPTS = 5
"""How often a shard is begun: Ray Data would run one that kills its worker again for ever."""


@dataclass(frozen=True)
class Job:
    """What a job is to do.

    Attributes:
        inputs: files and folders, paths or URIs that every node can read.
        output: the folder of the output, a path or URI that every node can write.
        format: of input and output, a name in `FORMATS`.
        bundle: a folder on each node, a name on the hub, or a URI.
        columns: which columns are read and added.
        options: of the translations, see `TranslateOptions`.
        opening: how the bundle is opened, see `Translator`.
        shard_rows: most rows of a shard.
        actors: how many translate; None for as many as the cluster has room for.
        cpus: CPUs, and threads, of an actor.
        gpus: GPUs of an actor; a fraction shares one.

    Raises:
        InvalidInputError: a value has the wrong type or is out of range.
    """

    inputs: tuple[str, ...]
    output: str
    format: str
    bundle: str
    columns: Columns
    options: dict[str, Any] = field(default_factory=dict)
    opening: dict[str, Any] = field(default_factory=dict)
    shard_rows: int = 2000
    actors: int | None = None
    cpus: int = 1
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            names = ", ".join(FORMATS)
            raise InvalidInputError(f"format: expected one of {names}, found {self.format!r}")
        for name, value in (("shard_rows", self.shard_rows), ("cpus", self.cpus)):
            if type(value) is not int or value < 1:
                raise InvalidInputError(f"{name}: expected an int from 1 on, found {value!r}")
        if self.actors is not None and (type(self.actors) is not int or self.actors < 1):
            raise InvalidInputError(f"actors: expected an int from 1 on, found {self.actors!r}")
        if not 0 <= self.gpus < 1024:
            raise InvalidInputError(f"gpus: expected a number from 0 on, found {self.gpus!r}")

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the contents of the output, as JSON."""
        columns = asdict(self.columns)
        facts = {"format": self.format, "columns": columns, "options": self.options}
        found: dict[str, Any] = json.loads(json.dumps(facts))
        return found


@dataclass(frozen=True)
class _Plan:
    """The shards of a job, and the bundle that all of them are translated with."""

    shards: list[Shard]
    identity: str

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)


def run(
    job: Job,
    *,
    address: str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Carries a job out and returns its summary, which `_summary.json` in the output has too.

    Args:
        job: what to do.
        address: of a Ray cluster, as `ray.init` takes it; None for one of this machine that ends
            with the job.
        resume: whether the output may have the finished shards of an earlier run of this job.
        progress: called after each shard.

    Raises:
        InvalidInputError: an argument, an input or a column is wrong; the output has files already;
            or it is that of another job.
        JobError: there is no cluster at the address, or a node failed, which the message names;
            finished shards stay.
        OSError: the driver cannot read an input or write the output.
    """
    job = replace(
        job,
        inputs=tuple(map(absolute, job.inputs)),
        output=absolute(job.output),
        bundle=_found_by_workers(job.bundle),
    )
    store = Store(job.output)
    names = _names(store, resume=resume)
    files = input_files(job.inputs, job.format)
    began = time.monotonic()
    with connected(address):
        actors = actors_for(job.actors, job.cpus, job.gpus)
        plan = _planned(job, store, files, resumed=RECORD in names)
        todo = [shard for shard in plan.shards if shard.name not in names]
        store.clean()
        done = plan.rows - sum(shard.rows for shard in todo)
        if progress is not None:
            progress(done, plan.rows)
        for rows in _translated(job, plan, todo, actors) if todo else ():
            done += rows
            if progress is not None:
                progress(done, plan.rows)
        store.clean()
    facts = store.facts(shard.name for shard in plan.shards)
    summary = summarize(facts, time.monotonic() - began, len(todo))
    store.write(SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
    return summary


def _names(store: Store, *, resume: bool) -> set[str]:
    """Returns what is in the output; raises `InvalidInputError` if the job must not write there."""
    names = store.names()
    if names and not resume:
        raise InvalidInputError(
            f"output: {store.place}: expected no such folder or an empty one, found "
            f"{len(names)} files; resume its job with --resume, or choose another"
        )
    if names and RECORD not in names:
        raise InvalidInputError(
            f"output: {store.place}: expected the record of a job, {RECORD}, found none"
        )
    return names


def _found_by_workers(bundle: str) -> str:
    """Returns a bundle's place as workers find it, who have other working folders."""
    # What is no folder here may be one on the nodes, or a name on the hub.
    is_folder = not is_uri(bundle) and Path(bundle).expanduser().is_dir()
    return absolute(bundle) if is_folder else bundle


def _planned(job: Job, store: Store, files: list[tuple[str, int]], *, resumed: bool) -> _Plan:
    """Returns the plan: that of the record where there is one, else a new one that is recorded."""
    import ray

    probe = ray.remote(_probe).options(num_cpus=job.cpus, num_gpus=job.gpus).remote(job)
    with remote_cause():
        identity: str = ray.get(probe)
    inputs = [[path, size] for path, size in files]
    if resumed:
        record = store.read_record()
        _compare(record, {"job": job.facts, "inputs": inputs, "bundle": identity}, store.place)
        return _Plan([Shard(**each) for each in record["shards"]], identity)
    cut = ray.remote(shards_of).options(num_cpus=job.cpus)
    tasks = [
        cut.remote(path, number, job.format, job.columns, job.shard_rows)
        for number, (path, _) in enumerate(files)
    ]
    with remote_cause():
        shards = [shard for found in ray.get(tasks) for shard in found]
    facts = {"job": job.facts, "inputs": inputs, "bundle": identity}
    record = {**facts, "shards": [asdict(shard) for shard in shards]}
    store.write(RECORD, json.dumps(record).encode())
    return _Plan(shards, identity)


def _compare(record: dict[str, Any], facts: dict[str, Any], place: str) -> None:
    """Raises `InvalidInputError` if a record is that of another job."""
    for name, found in facts.items():
        if record.get(name) != found:
            raise InvalidInputError(
                f"output: {place}: its job had another {name}: expected "
                f"{json.dumps(record.get(name))[:500]}, found {json.dumps(found)[:500]}; "
                "a job is resumed with what it began with"
            )


def _probe(job: Job) -> str:
    """Opens the bundle on a node and checks languages and options; returns which bundle it is."""
    translate = _batch_of(replace(job, opening={**job.opening, "lazy": True}))
    return identity_of(translate.translator.bundle)


def _batch_of(job: Job) -> TranslateBatch:
    columns = job.columns
    return TranslateBatch(
        job.bundle,
        text_column=columns.text,
        source_lang=columns.source_lang,
        source_lang_column=columns.source_lang_column,
        target_lang=columns.target_lang,
        target_lang_column=columns.target_lang_column,
        output_column=columns.output,
        opening=job.opening,
        **job.options,
    )


class _Worker:
    """An actor that translates shards; what goes wrong comes back as a value that names the node.

    An error that is raised would become a Ray error with a trace in its message, and one of the
    constructor would be tried again and again.
    """

    def __init__(self, job: Job, identity: str) -> None:
        self._job, self._store = job, Store(job.output)
        self._failure: str | None = None
        try:
            self._batch = _batch_of(job)
            self._batch.translator.model.load()
            if identity_of(self._batch.translator.bundle) != identity:
                message = f"{job.bundle}: expected the bundle that other nodes have, found another"
                self._failure = f"node {node_name()}: {message}"
        except Exception as error:
            self._failure = _named(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        (text,) = batch["shard"]
        shard = Shard(**json.loads(str(text)))
        failure, rows = self._failure, 0
        if failure is None:
            try:
                self._translate(shard)
                rows = shard.rows
            except Exception as error:
                failure = f"{_named(error)} (at {shard.name})"
        return {"rows": [rows], "failure": [failure or ""]}

    def _translate(self, shard: Shard) -> None:
        import ray

        began = time.monotonic()
        before = self._store.begin(shard.name, node_name())
        if len(before) >= _ATTEMPTS:
            nodes = ", ".join(dict.fromkeys(before))
            raise JobError(f"node {nodes}: the worker died each time at {shard.name}")
        rows = read_shard(shard, self._job.format, self._job.columns)
        results = self._batch.translate(rows.columns, rows.problems)
        facts = {
            "shard": shard.name,
            "rows": shard.rows,
            "unread": len(rows.problems),
            "actor": ray.get_runtime_context().get_actor_id(),
            "node": node_name(),
            "stats": asdict(results.stats),
            "counts": {pair: asdict(counts) for pair, counts in results.counts.items()},
            "seconds": time.monotonic() - began,
            "ended": time.time(),
        }
        self._store.finish(shard.name, rows.encode(results), facts)
        self._store.end(shard.name, len(before))


def _named(error: Exception) -> str:
    if isinstance(error, JobError):
        return str(error)
    reason = str(error) if isinstance(error, (M2M100Error, OSError)) else repr(error)
    return f"node {node_name()}: {type(error).__name__}: {reason}"


def _translated(job: Job, plan: _Plan, todo: list[Shard], actors: int) -> Iterator[int]:
    """Translates shards on the cluster; yields the rows of each that is finished.

    Raises:
        JobError: a node failed.
    """
    import ray.data

    # A row and a block for each shard, so that Ray Data hands out one at a time.
    rows = [{"shard": json.dumps(asdict(shard))} for shard in todo]
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Worker,
        fn_constructor_kwargs={"job": job, "identity": plan.identity},
        batch_size=1,
        batch_format="numpy",
        num_cpus=job.cpus,
        num_gpus=job.gpus or None,
        # The next shard waits beside the actor, and no more: others may be free for them.
        compute=ray.data.ActorPoolStrategy(
            size=min(actors, len(todo)), max_tasks_in_flight_per_actor=2
        ),
    )
    with remote_cause():
        for row in results.iter_rows():
            if row["failure"]:
                raise JobError(row["failure"])
            yield int(row["rows"])
