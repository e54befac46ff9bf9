"""Files in, files out: every format is cut, read and written so that nothing is lost or doubled."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.jobs.columns import Columns, Results
from m2m100_onnx.jobs.shards import FORMATS, Rows, Shard, input_files, read_shard, shards_of

COLUMNS = Columns("text", source_lang="en", target_lang="de")
ODD = [
    "",
    " ",
    "a,b",
    'say "x"',
    "two\nlines",
    "carriage\r\nreturn",
    "é 中文",
    "\u2028",
    "{}",
    "tab\t",
]


def records(count: int, seed: int) -> list[dict[str, str]]:
    chooser = random.Random(seed)
    return [
        {"id": f"n{n}", "text": chooser.choice(ODD) * chooser.randint(1, 3)} for n in range(count)
    ]


def write(path: Path, kind: str, rows: list[dict[str, str]]) -> None:
    if kind == "parquet":
        table = pa.Table.from_pylist(rows, pa.schema([("id", pa.string()), ("text", pa.string())]))
        pq.write_table(table, path, row_group_size=7)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["id", "text"])
            writer.writeheader()
            writer.writerows(rows)


def parsed(data: bytes, kind: str) -> list[dict[str, Any]]:
    if kind == "parquet":
        return pq.read_table(io.BytesIO(data)).to_pylist()
    if kind == "jsonl":
        return [json.loads(line) for line in data.splitlines()]
    return [*csv.DictReader(io.StringIO(data.decode(), newline=""))]


def upper(rows: Rows) -> Results:
    """Stands for a translation: capitals, and an error for what is empty."""
    texts = rows.columns[0]
    translations = [text.upper() if text else None for text in texts]
    errors = [None if text else "empty" for text in texts]
    return Results(translations, errors, [None] * len(texts))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("most", [1, 3, 7, 10, 1000])
def test_shards_together_are_the_file(tmp_path: Path, kind: str, most: int) -> None:
    rows = records(61, most)
    path = tmp_path / f"in.{kind}"
    write(path, kind, rows)
    shards = shards_of(str(path), 0, kind, COLUMNS, most)
    assert [shard.rows for shard in shards[:-1]] == [min(most, 61)] * (len(shards) - 1)
    assert [shard.first for shard in shards] == [n * most for n in range(len(shards))]
    found = []
    for shard in shards:
        read = read_shard(shard, kind, COLUMNS)
        found += parsed(read.encode(upper(read)), kind)
    nothing = "" if kind == "csv" else None
    assert found == [
        {
            **row,
            "translation": row["text"].upper() if row["text"] else nothing,
            "translation_error": nothing if row["text"] else "empty",
            "translation_flag": nothing,
        }
        for row in rows
    ]


@pytest.mark.parametrize("kind", FORMATS)
def test_no_rows_are_no_shards(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"in.{kind}"
    write(path, kind, [])
    assert shards_of(str(path), 0, kind, COLUMNS, 10) == []


@pytest.mark.parametrize("kind", FORMATS)
def test_a_shard_is_bounded_in_bytes(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m2m100_onnx.jobs.shards.MOST_BYTES", 4000)
    rows = [{"id": str(n), "text": f"{n} " * 300} for n in range(20)]
    path = tmp_path / f"in.{kind}"
    write(path, kind, rows)
    shards = shards_of(str(path), 0, kind, COLUMNS, 1000)
    assert len(shards) >= 4
    assert sum(shard.rows for shard in shards) == 20


def test_a_json_line_stays_as_it_is(tmp_path: Path) -> None:
    line = b'  {"id": 12345678901234567890, "score": 1.10, "text" : "a",  "x": {"y": [1e400]}} \r\n'
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n" + line + b"\n  \n")
    (shard,) = shards_of(str(path), 0, "jsonl", COLUMNS, 10)
    rows = read_shard(shard, "jsonl", COLUMNS)
    written = rows.encode(upper(rows))
    assert written.startswith(line.strip()[:-1] + b', "translation": "A"')
    assert json.loads(written)["translation"] == "A"


BAD_LINES = {
    b'{"id": 1}': "expected a column 'text', found 'id'",
    b'{"text": "a", "translation": "old"}': "expected no column 'translation'",
    b'["text"]': "expected a JSON object",
    b'{"text": "a"': "expected a JSON object",
    b'{"text": "\xff"}': "expected a JSON object",
    b"[" * 100_000: "expected a JSON object",
}


def test_a_json_line_that_is_wrong_is_an_error_of_its_row(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join([b'{"text": "a"}', *BAD_LINES, b'{"text": "b"}']))
    (shard,) = shards_of(str(path), 0, "jsonl", COLUMNS, 100)
    rows = read_shard(shard, "jsonl", COLUMNS)
    assert [*rows.problems] == [1, 2, 3, 4, 5, 6]
    for reason, expected in zip(rows.problems.values(), BAD_LINES.values(), strict=True):
        assert expected in reason
    errors = [rows.problems.get(place) for place in range(8)]
    lines = rows.encode(Results(["x"] * 8, errors, [None] * 8)).splitlines()
    assert [json.loads(line)["translation_error"] for line in lines] == errors
    # What was in the line is in the output.
    assert json.loads(lines[1])["id"] == 1
    assert json.loads(lines[2])["unread"] == '{"text": "a", "translation": "old"}'
    assert json.loads(lines[5])["unread"] == '{"text": "\\xff"}'


def test_csv_keeps_what_is_no_utf8_and_names_ragged_rows(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b"\xef\xbb\xbfid,text\r\n1,a\r\n\r\n2,b,c\r\n3\r\n4,\xff\r\n")
    (shard,) = shards_of(str(path), 0, "csv", COLUMNS, 100)
    rows = read_shard(shard, "csv", COLUMNS)
    assert rows.columns == [["a", None, None, "\udcff"]]
    assert rows.problems == {
        1: 'InvalidInputError: expected 2 fields, found 3: ["2", "b", "c"]',
        2: 'InvalidInputError: expected 2 fields, found 1: ["3"]',
    }
    written = rows.encode(Results(["A", None, None, None], [None, "x", "y", "z"], [None] * 4))
    assert written.splitlines() == [
        b"id,text,translation,translation_error,translation_flag",
        b"1,a,A,,",
        b",,,x,",
        b",,,y,",
        b"4,\xff,,z,",
    ]


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.csv", b"id,words\n1,a\n", r"a\.csv: expected a column 'text', found 'id', 'words'"),
        ("a.csv", b"text,text\n1,a\n", "expected one column 'text'"),
        ("a.csv", b"text,translation\n1,a\n", "expected no column 'translation'"),
        ("a.csv", b"", "expected a column 'text', found none"),
        ("a.csv", b'text\na\n"open\nb\n', "line 4 is no CSV"),
        ("a.jsonl", b'{"id": 1}\n', "the first object: expected a column 'text', found 'id'"),
        ("a.jsonl", b'{"text": 1, "translation_flag": 1}\n', "expected no column"),
        ("a.parquet", b"PAR1 it is not", r"a\.parquet: expected Parquet"),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, name: str, data: bytes, expected: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InvalidInputError, match=expected):
        shards_of(str(path), 0, path.suffix[1:], COLUMNS, 10)


def test_a_parquet_column_of_numbers(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(InvalidInputError, match="column 'text': expected text, found int64"):
        shards_of(str(tmp_path / "a.parquet"), 0, "parquet", COLUMNS, 10)


def test_parquet_keeps_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": pa.array([1, 2, 3], pa.uint64()),
            "text": pa.array(["a", None, "b"]).dictionary_encode(),
            "tags": pa.array([["x"], [], None], pa.list_(pa.string())),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    shard = shards_of(str(tmp_path / "a.parquet"), 0, "parquet", COLUMNS, 10)[0]
    rows = read_shard(shard, "parquet", COLUMNS)
    found = pq.read_table(io.BytesIO(rows.encode(upper(rows))))
    assert found.select(["id", "text", "tags"]).to_pylist() == table.to_pylist()
    assert found.schema.field("id").type == pa.uint64()
    assert found["translation"].to_pylist() == ["A", None, "B"]


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' * 4)
    (shard,) = shards_of(str(path), 0, "jsonl", COLUMNS, 10)
    path.write_text('{"text": "a"}\n' * 3)
    with pytest.raises(InvalidInputError, match="expected 4 rows from row 0 on, found 3"):
        read_shard(shard, "jsonl", COLUMNS)


def test_input_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", "_job.jsonl", ".x.jsonl", "a.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    found = input_files([str(tmp_path)], "jsonl")
    names = [Path(path).relative_to(tmp_path).as_posix() for path, _ in found]
    assert names == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]
    assert {size for _, size in found} == {2}
    one = str(tmp_path / "a.csv")
    assert input_files([one], "jsonl") == [(one, 2)]
    with pytest.raises(InvalidInputError, match=r"found .*a\.csv twice"):
        input_files([one, one], "csv")
    with pytest.raises(InvalidInputError, match=r"none\.csv: expected a file or a folder"):
        input_files([str(tmp_path / "none.csv")], "csv")
    with pytest.raises(InvalidInputError, match=r"expected files \*\.parquet, found none"):
        input_files([str(tmp_path)], "parquet")
    (tmp_path / "a.jsonl.gz").write_bytes(b"")
    with pytest.raises(InvalidInputError, match=r"a\.jsonl\.gz: expected an uncompressed file"):
        input_files([str(tmp_path)], "jsonl")


def test_shards_can_be_recorded(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' * 3)
    shards = shards_of(str(path), 7, "jsonl", COLUMNS, 2)
    assert [shard.name for shard in shards] == [
        "part-00007-000000.jsonl",
        "part-00007-000001.jsonl",
    ]
    assert [Shard(**json.loads(json.dumps(vars(shard)))) for shard in shards] == shards


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"target_lang": "de"}, "source_lang: expected a code for all rows or .* found none"),
        (
            {"source_lang": "en", "source_lang_column": "l", "target_lang": "de"},
            "source_lang: .* found both",
        ),
        ({"source_lang": "en", "target_lang": "de", "output": ""}, "columns: expected names"),
    ],
)
def test_columns_that_are_wrong(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidInputError, match=expected):
        Columns(**given)
