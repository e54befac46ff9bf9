"""Tests the comparison with peers: settings, turns, cells that are kept, and the tables."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from translations import need_compiler

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def compare(work: Path, results: Path, *more: str) -> subprocess.CompletedProcess[str]:
    script = str(BENCHMARKS / "compare.py")
    command = [sys.executable, script, str(work), "--results", str(results), "--quick"]
    command += ["--shape", "tiny", "--engines", "ours int8", "--repetitions", "1", "--lines", "3"]
    # No environment of a peer is there.
    return subprocess.run(
        [*command, "--environments", str(work), *more], capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def work(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("compare")
    shutil.copytree(make_checkpoint(), found / "checkpoint-tiny")
    return found


@pytest.fixture(scope="module")
def measured(work: Path) -> dict[str, Any]:
    done = compare(work, work / "results", "--only", "1x1,steps,start,en-de 5 text")
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((work / "results" / "compare.json").read_text())
    return found


def test_each_cell_has_its_samples_and_the_load_before_it(measured: dict[str, Any]) -> None:
    rows = {row["cell"]: row for row in measured["rows"]}
    assert set(rows) == {"1x1", "steps", "start", "en-de 5 text"}
    for row in rows.values():
        assert row["load_average"] >= 0
        assert {each["engine"] for each in row["engines"]} == {"ours int8"}
    (speed,) = rows["1x1"]["engines"]
    assert len(speed["samples"]) == 1
    assert speed["tokens"] == 48
    (text,) = rows["en-de 5 text"]["engines"]
    assert text["tokens"] > 3
    assert [each["rows"] for each in rows["steps"]["engines"]] == [1, 160]
    (start,) = rows["start"]["engines"]
    assert start["first"] > 0 < start["starts"][0]
    assert start["memory"]["private"] > 0


def test_a_run_goes_on_where_the_one_before_it_ended(work: Path, measured: dict[str, Any]) -> None:
    path = work / "results" / "compare.json"
    done = compare(work, work / "results", "--only", "1x1,en-de 1 text")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "== en-de 1 text" in done.stdout
    assert "== 1x1" not in done.stdout
    rows = json.loads(path.read_text())["rows"]
    assert rows[: len(measured["rows"])] == measured["rows"]
    assert rows[-1]["cell"] == "en-de 1 text"


def test_cells_of_other_code_are_not_kept(measured: dict[str, Any], tmp_path: Path) -> None:
    from compare import Comparison

    path = tmp_path / "compare.json"
    path.write_text(json.dumps(measured))
    same, other = {"code": measured["code"]}, {"code": "another"}
    for stamp, again, kept in ((same, False, 4), (other, False, 0), (same, True, 0)):
        found = Comparison(path, stamp, {"1x5": 7}, None)
        found.resume(again)
        assert len(found.rows) == kept
        # The time of a cell is known from before, whatever measured it.
        took = 0 if kept else {row["cell"]: row["took"] for row in measured["rows"]}["1x1"]
        assert found.estimate(["1x1", "1x5"]) == pytest.approx(took + 7)


def test_a_cell_that_fails_costs_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from compare import Comparison

    def fail() -> Any:
        raise RuntimeError("out of luck")

    found = Comparison(tmp_path / "compare.json", {}, {}, None)
    found.take("one", fail)
    found.take("two", lambda: {"engines": []})
    assert found.failed == ["one"]
    assert "out of luck" in capsys.readouterr().err
    rows = json.loads(found.path.read_text())["rows"]
    assert [row["cell"] for row in rows] == ["two"]


def test_an_unknown_cell_is_refused(work: Path) -> None:
    done = compare(work, work / "nothing", "--only", "1x7")
    assert done.returncode == 2
    assert "1x7" in done.stderr or "expected some of 1x1" in done.stderr
    assert not (work / "nothing").exists()


def test_settings_share_the_cores_between_workers_and_their_operators() -> None:
    from ctranslate2_settings import thread_settings

    def shown(sentences: int, cores: int) -> list[tuple[int, int, int, int]]:
        found = thread_settings(sentences, cores)
        return [(s.workers, s.threads, s.parts, s.most(sentences)) for s in found]

    assert shown(1, 2) == [(1, 2, 0, 0)]
    assert shown(2, 2) == [(1, 2, 0, 0), (2, 1, 2, 1)]
    assert shown(9, 2) == [(1, 2, 0, 0), (2, 1, 2, 5), (2, 1, 4, 3)]
    assert [row[:2] for row in shown(32, 4)] == [(1, 4), (2, 2), (2, 2), (4, 1), (4, 1)]


def test_the_search_varies_one_dimension_of_the_best_after_the_other() -> None:
    from ctranslate2_settings import Setting, search, thread_settings

    def seconds(setting: Setting) -> float:
        slow = {"its default": 1.0, "MKL": 0.5, "MKL packed": 0.25}[setting.products]
        return 10 - setting.parts + slow + setting.wide

    found = search(thread_settings(8, 2), seconds, wide=True, hopeless=set())
    assert list(found.values()) == sorted(found.values())
    best = next(iter(found))
    assert (best.workers, best.parts, best.products, best.wide) == (2, 4, "MKL packed", False)
    assert best.label == "2 x 1, 4 parts, MKL packed"
    assert best.variables == {"CT2_USE_MKL": "1", "CT2_PACKED_GEMM": "1"}
    assert len(found) == 3 + 2 + 1


def test_products_that_are_far_slower_are_not_tried_again() -> None:
    from ctranslate2_settings import Setting, search

    hopeless: set[str] = set()
    tried: list[str] = []

    def seconds(setting: Setting) -> float:
        tried.append(setting.products)
        return {"its default": 1.0, "MKL": 3.5, "MKL packed": 2.5}[setting.products]

    for _ in range(2):
        search([Setting(1, 2)], seconds, wide=False, hopeless=hopeless)
    assert hopeless == {"MKL"}
    assert tried == ["its default", "MKL", "MKL packed", "its default", "MKL packed"]


class ScriptedArena:
    """Takes the place of processes; CTranslate2 is twice as fast with two workers."""

    def __init__(self) -> None:
        self.turns: list[str] = []
        self.hopeless: set[str] = set()

    def ask(self, one: Any, request: Any, _: int) -> tuple[float, int]:
        if request == "wake":
            return 0.0, 1
        self.turns.append(one.name)
        if one.setting:
            return (2.0 if one.setting.workers == 2 else 4.0) + one.setting.wide, 8
        return {"ours int8": 1.0, "openvino int8": 60.0}[one.name], 8


@pytest.fixture
def contest() -> Callable[..., tuple[ScriptedArena, dict[str, Any]]]:
    from contest import Effort, Task, run
    from ctranslate2_settings import thread_settings

    def start(**effort: Any) -> tuple[ScriptedArena, dict[str, Any]]:
        arena: Any = ScriptedArena()
        settings = tuple(thread_settings(8, 2))
        task: Any = Task("8x1", "request", 8, settings, 8, "wake")  # type: ignore[arg-type]
        names = ("ours int8", "ctranslate2 int8", "openvino int8")
        return arena, run(arena, task, names, Effort(**effort))

    return start


def test_turns_are_taken_and_the_slow_have_fewer(contest: Any) -> None:
    arena, row = contest(repetitions=4, budget=5, finalists=2)
    samples = [(each["engine"], len(each["samples"])) for each in row["engines"]]
    # 5 seconds are 4 repetitions of 1 second, 2 of 2 seconds, and the warm-up alone of 60.
    assert samples == [
        ("ours int8", 4),
        ("openvino int8", 1),
        ("ctranslate2 int8", 2),
        ("ctranslate2 int8", 2),
    ]
    assert arena.turns.count("openvino int8") == 1
    assert {each.get("setting", "")[:5] for each in row["engines"]} == {"", "2 x 1"}
    assert arena.turns[-2:] == ["ours int8", "ours int8"]


@pytest.mark.parametrize("name", ["ours int8", "openvino int8"])
def test_a_peer_that_gives_other_tokens_has_no_samples(
    contest: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    ask = ScriptedArena.ask

    def fewer(arena: ScriptedArena, one: Any, *request: Any) -> tuple[float, int]:
        seconds, tokens = ask(arena, one, *request)
        return seconds, 7 if one.name == name else tokens

    monkeypatch.setattr(ScriptedArena, "ask", fewer)
    message = f"expected 8 tokens of {name}, found 7"
    if name.startswith("ours"):
        with pytest.raises(RuntimeError, match=message):
            contest(repetitions=1, budget=1, finalists=1)
        return
    _, row = contest(repetitions=1, budget=9, finalists=1)
    assert row["failed"] == {name: message}
    assert [each["engine"] for each in row["engines"]] == ["ours int8", "ctranslate2 int8"]


def test_a_setting_that_fails_is_left_out(contest: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = ScriptedArena.ask

    def narrow(arena: ScriptedArena, one: Any, *request: Any) -> tuple[float, int]:
        if one.setting and one.setting.wide:
            raise RuntimeError("no AVX-512")
        return ask(arena, one, *request)

    monkeypatch.setattr(ScriptedArena, "ask", narrow)
    monkeypatch.setattr("contest.has_avx512", lambda: True)
    _, row = contest(repetitions=1, budget=9, finalists=2)
    assert len(row["probes"]) == 5
    assert not any("AVX-512" in label for label in row["probes"])


def cell(name: str, **samples: list[float]) -> dict[str, Any]:
    engines = [{"engine": n.replace("_", " "), "samples": s} for n, s in samples.items()]
    return {"cell": name, "probes": {}, "engines": engines, "failed": {}}


def test_ratios_are_to_the_better_setting_of_the_peer() -> None:
    from compare_report import compared_targets, ratio

    row = cell("1x1", ours_int8=[1.0, 2.0, 4.0], ours_int4=[2.0, 2.0, 2.0])
    slow = {"engine": "ctranslate2 int8", "setting": "1 x 2", "samples": [9.0, 9.0, 9.0]}
    fast = {"engine": "ctranslate2 int8", "setting": "2 x 1", "samples": [4.0, 8.0, 1.0]}
    row["engines"] += [slow, fast]
    assert ratio(row, "ours int8") == 4
    found = {target.name: target.cells()[2:] for target in compared_targets({"rows": [row]})}
    assert found["B=1 greedy: ours int8"] == ["4.00 x", "reached"]
    assert found["B=1 greedy: ours int4"] == ["2.00 x", "**missed**"]
    assert found["B=1 beam 5: ours int8"] == ["not measured", ""]
    of_int8 = found["ours int4 against ours int8, every cell"]
    assert of_int8 == ["1.00 x (B=1 greedy) to 1.00 x", "reached"]


def test_a_step_is_bounded_by_reading_or_by_products() -> None:
    from compare_report import share
    from native_limits import least_seconds

    limits = {"read": [8e9, 10e9], "products": [100e9]}
    costs = {"bytes": 100e6, "products": 100e6}
    least = {str(rows): least_seconds(limits, costs, rows) for rows in (1, 160)}
    assert least == {"1": pytest.approx(0.010), "160": pytest.approx(0.160)}
    steps = [{"engine": "ours", "rows": rows, "steps": [0.2, 0.4]} for rows in (1, 160)]
    rows = {
        "limits": {**limits, "costs": {"ours": costs}, "least": {"ours": least}},
        "steps": {"engines": steps},
    }
    assert share(rows, "ours", 1) == (pytest.approx(0.3), pytest.approx(0.01), "reading")
    assert share(rows, "ours", 160) == (pytest.approx(0.3), pytest.approx(0.16), "products")
    assert share(rows, "other", 1) is None


def test_the_machines_limits_come_from_the_kernels_own_loops(tmp_path: Path) -> None:
    from native_limits import native_limits

    need_compiler()
    found = native_limits(tmp_path, repetitions=2, mebibytes=8)
    assert len(found["read"]) == len(found["products"]) == 2
    assert min(found["read"] + found["products"]) > 1e8
    usage = subprocess.run([tmp_path / "limits", "0", "1", "1"], capture_output=True, text=True)
    assert usage.returncode == 2
    assert "usage" in usage.stderr


@pytest.mark.parametrize(
    ("environ", "names"), [({}, r"g\+\+ or clang\+\+"), ({"CXX": "none-such"}, "none-such")]
)
def test_a_missing_compiler_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], names: str
) -> None:
    import native_limits

    monkeypatch.setattr(native_limits, "os", SimpleNamespace(environ=environ))
    monkeypatch.setattr(native_limits.shutil, "which", lambda _: None)
    with pytest.raises(RuntimeError, match=rf"expected a C\+\+ compiler, found no {names}"):
        native_limits.native_limits(tmp_path, 1)


def test_the_tables_show_every_cell(measured: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text(json.dumps(measured))
    command = [sys.executable, str(BENCHMARKS / "report.py"), "--print", "--results"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for text in ("B=1 greedy", "en-de beam 5, text", "Start of a process", "Targets against peers"):
        assert text in done.stdout
