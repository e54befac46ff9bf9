"""Files: formats, names, limits, how long a translation can be fetched."""

from __future__ import annotations

import os
import random
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from libretranslate_aio import BadRequestError, LibreTranslate

from m2m100_onnx import Translator
from m2m100_onnx.server.documents import FORMATS, Document
from m2m100_onnx.server.refusals import Refused
from m2m100_onnx.server.results import Results
from m2m100_onnx.server.settings import Limits
from serving import Answer, Server, serving

FLAGS = ("--file-characters", "9000", "--characters", "60", "--texts", "3", "--calls", "2")
LANGUAGES = {"source": "en", "target": "de"}
TEXT = "Open the file."
SRT = """1
00:00:01,000 --> 00:00:02,000
<i>{0}</i>

2
00:00:03,000 --> 00:00:04,500 X1:40
The file could
not be found.

3
00:00:05,000 --> 00:00:06,000
- {0}
- {0}

"""


@pytest.fixture(scope="module")
def german(translator: Translator) -> str:
    return translator.translate(TEXT, source_lang="en", target_lang="de")


def send(
    server: Server, name: str, content: bytes | str, given: dict[str, Any] = LANGUAGES
) -> httpx.Response:
    data = content.encode() if isinstance(content, str) else content
    files = {"file": (name, data)}
    return httpx.post(f"{server.url}/translate_file", data=given, files=files, timeout=60)


def fetched(server: Server, name: str, content: bytes | str, **given: str) -> bytes:
    answer = send(server, name, content, {**LANGUAGES, **given})
    assert answer.status_code == 200, answer.text
    url = answer.json()["translatedFileUrl"]
    return httpx.get(url).raise_for_status().content


def test_a_text(server: Server, german: str) -> None:
    found = fetched(server, "a.txt", f"{TEXT}\r\n\r\n  {TEXT} {TEXT}\n")
    assert found.decode() == f"{german}\r\n\r\n  {german} {german}\n"
    assert fetched(server, "A.TXT", b"\xef\xbb\xbf" + TEXT.encode()).decode("utf-8-sig") == german
    assert fetched(server, "a.txt", b"") == b""
    assert fetched(server, "a.txt", TEXT, source="auto").decode() == german


def test_html(server: Server, german: str) -> None:
    page = f'<!doctype html><title>{TEXT}</title><p class="x">{TEXT}<script>{TEXT}</script>\n'
    expected = page.replace(TEXT, german, 2)
    assert fetched(server, "a.htm", page).decode() == expected


def test_subtitles(server: Server, translator: Translator, german: str) -> None:
    other = translator.translate("The file could not be found.", source_lang="en", target_lang="de")
    found = fetched(server, "film.srt", SRT.format(TEXT)).decode()
    lines = found.splitlines()
    assert lines[:6] == [*SRT.splitlines()[:2], f"<i>{german}</i>", "", "2", SRT.splitlines()[5]]
    # As many lines as before, which are about as long.
    assert " ".join(lines[6:8]) == other
    assert max(map(len, lines[6:8])) < 0.7 * len(other)
    spoken = translator.translate(f"- {TEXT}", source_lang="en", target_lang="de")
    assert lines[8:] == ["", "3", SRT.splitlines()[10], spoken, spoken, ""]


def test_what_is_no_text_stays() -> None:
    random_ = random.Random(3)
    parts = [
        "1",
        "00:00:01,000 --> 00:00:02,000",
        "",
        "Yes.",
        "- No & <i>so</i>",
        "{\\an8} Up",
        " ",
    ]
    for _ in range(500):
        ends = random_.choice(["\n", "\r\n"])
        text = ends.join(random_.choices(parts, k=random_.randint(0, 12)))
        document = Document("a.srt", text.encode())
        assert not any("-->" in each or "{" in each for each in document.texts)
        # No word is lost, and no line is added, where nothing is translated.
        same = document.filled(document.texts).decode()
        assert same.split() == text.split()
        assert same.count("\n") == text.count("\n")
        assert same.count("\r") == text.count("\r")


def test_tags_of_subtitles_are_not_broken() -> None:
    text = '00:00:01,000 --> 00:00:02,000\n<font color="#ff0000">Yes or\nno & so</font>'
    (found,) = Document("a.srt", text.encode()).texts
    assert found == '<font color="#ff0000">Yes or no & so</font>'
    filled = Document("a.srt", text.encode()).filled([found.replace("&", "&amp;")]).decode()
    assert '<font color="#ff0000">Yes' in filled
    assert filled.split() == text.split()
    assert filled.count("\n") == 2


@pytest.mark.parametrize("name", ["a.exe", "a", "txt", "a.txt.pdf", "../a", "a.docx"])
def test_other_formats(server: Server, name: str) -> None:
    answer = send(server, name, TEXT)
    assert answer.status_code == 400
    assert answer.json() == {"error": "Invalid request: file format not supported"}


def test_what_is_missing_or_wrong(server: Server) -> None:
    url = f"{server.url}/translate_file"
    for given, message in (
        ({"target": "de"}, "Invalid request: missing source parameter"),
        ({"source": "en"}, "Invalid request: missing target parameter"),
        ({**LANGUAGES, "target": "zz"}, "zz is not supported"),
        ({**LANGUAGES, "source": "zz"}, "zz is not supported"),
    ):
        answer = send(server, "a.txt", TEXT, given)
        assert (answer.status_code, answer.json()) == (400, {"error": message})
    answer = httpx.post(url, data=LANGUAGES)
    assert answer.json() == {"error": "Invalid request: missing file parameter"}
    answer = httpx.post(url, json={**LANGUAGES, "file": "a"})
    assert answer.json() == {"error": "Invalid request: missing file parameter"}
    answer = send(server, "a.txt", b"\xff\xfe\x00")
    assert answer.json() == {"error": "Invalid request: the file is not in UTF-8"}
    # No upload at all to the parser of forms.
    assert send(server, "", TEXT).status_code == 400
    two = [("file", ("a.txt", b"a")), ("file", ("b.txt", b"b"))]
    assert httpx.post(url, data=LANGUAGES, files=two).status_code == 400


def test_a_file_has_limits_of_its_own(server: Server, german: str) -> None:
    """Longer than a request of text may be, and cut into calls, of which others have a place."""
    text = f"{TEXT}\n" * 500
    assert fetched(server, "long.txt", text).decode() == f"{german}\n" * 500
    answer = send(server, "long.txt", text * 2)
    expected = f"Invalid request: request ({len(text) * 2}) exceeds text limit (9000)"
    assert (answer.status_code, answer.json()) == (400, {"error": expected})
    answer = send(server, "large.txt", b"a" * (1 << 20))
    assert (answer.status_code, list(answer.json())) == (413, ["error"])


def test_names(server: Server) -> None:
    for name, expected in (
        ("Übersicht (neu).txt", "Ubersicht_neu__de.txt"),
        ("../../../etc/pass.wd.txt", "pass_wd_de.txt"),
        ("..\\..\\x.txt", "x_de.txt"),
        ("\u202e/\u200b.txt", "_de.txt"),
        ("a" * 300 + ".txt", "a" * 60 + "_de.txt"),
        ("; rm -rf.html", "_rm_-rf_de.html"),
    ):
        url = send(server, name, TEXT).json()["translatedFileUrl"]
        answer = httpx.get(url)
        assert answer.headers["content-disposition"] == f'attachment; filename="{expected}"'
        assert answer.headers["content-type"].startswith(FORMATS[f".{expected.split('.')[-1]}"])
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert re.fullmatch(rf"[0-9a-f]{{32}}\.{re.escape(expected)}", url.rsplit("/", 1)[1])


def test_names_that_were_never_given(server: Server) -> None:
    real = send(server, "a.txt", TEXT).json()["translatedFileUrl"].rsplit("/", 1)[1]
    for name in (
        "..",
        "%2e%2e%2fx",
        f"../files/{real}",
        f"./{real}",
        "%00",
        "log",
        "",
        f"{real}x/",
    ):
        answer = server.get(f"/download_file/{name}")
        assert (answer.status, answer.json) == (400, {"error": "Invalid filename"}), name
    other = f"{'0' * 32}.{real.split('.', 1)[1]}"
    assert server.get(f"/download_file/{other}").status == 404
    assert server.get(f"/download_file/{real}").status == 200


@pytest.mark.parametrize("host", ["[", "a b", "", "é", "x" * 2000, "evil.example:99999"])
def test_any_host_is_answered(server: Server, host: str) -> None:
    body = (
        b"--x\r\nContent-Disposition: form-data; name=file; filename=a.txt\r\n\r\nYes.\r\n"
        b"--x\r\nContent-Disposition: form-data; name=source\r\n\r\nen\r\n"
        b"--x\r\nContent-Disposition: form-data; name=target\r\n\r\nde\r\n--x--\r\n"
    )
    head = (
        f"POST /translate_file HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
        f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with server.raw() as one:
        one.sendall(head.encode() + body)
        answer = one.makefile("rb").read()
    assert answer.split()[1] in (b"200", b"400"), answer


def test_a_client_that_goes_in_the_middle_of_its_file(server: Server) -> None:
    head = (
        "POST /translate_file HTTP/1.1\r\nHost: x\r\nX-Request-ID: gone\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000\r\n\r\n--x"
    )
    with server.raw() as one:
        one.sendall(head.encode())
    assert server.logged("gone")["status"] == 499
    assert [line for line in server.lines() if line["level"] == "error"] == []


def test_old_files_are_removed(tmp_path: Path) -> None:
    results = Results(tmp_path, 0.2, 1 << 20)
    name = results.keep("a.txt", "de", ".txt", b"found")
    path, shown = results.find(name)
    assert (path.read_bytes(), shown) == (b"found", "a_de.txt")
    time.sleep(0.3)
    with pytest.raises(Refused, match="not any more"):
        results.find(name)
    assert list(tmp_path.iterdir()) == []


def test_files_are_not_without_number(tmp_path: Path) -> None:
    """A file takes whole blocks of the disk, and another process's count too."""
    results = Results(tmp_path, 60, 3 * 4096)
    results.keep("a.txt", "de", ".txt", b"a" * 4097)
    results.keep("b.txt", "de", ".txt", b"")
    other = Results(tmp_path, 60, 3 * 4096)
    for full in (results, other):
        with pytest.raises(Refused, match="too many files"):
            full.keep("c.txt", "de", ".txt", b"")
    assert len(list(tmp_path.iterdir())) == 2
    os.utime(next(tmp_path.iterdir()), (0, 0))
    time.sleep(1.1)  # The size of the folder is asked for once a second.
    results.keep("d.txt", "de", ".txt", b"")


def test_a_server_keeps_thousands_of_small_files(tmp_path: Path) -> None:
    results = Results(tmp_path, 60, Limits().file_bytes)
    for number in range(3000):
        results.keep(f"{number}.txt", "de", ".txt", b"some text")
    assert len(list(tmp_path.iterdir())) == 3000


def test_a_folder_that_takes_long_to_add_up_is_added_up_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ten thousand files, once a second would take a server a twentieth of its time."""
    now, looks = [0.0], []

    class Folder(type(tmp_path)):  # type: ignore[misc]
        def iterdir(self) -> Any:
            looks.append(now[0])
            now[0] += 0.5
            return super().iterdir()

    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    monkeypatch.setattr("m2m100_onnx.server.results.time", clock)
    results = Results(Folder(tmp_path), 60, 1 << 20)
    for second in range(100):
        now[0] = max(now[0], float(second))
        results.keep("a.txt", "de", ".txt", b"found")
    assert looks == [0.0, 51.0]


def test_files_go_with_time_and_with_the_server(demo_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    start = ["env", f"TMPDIR={tmp_path}/tmp"]
    flags = ("--file-minutes", "0.02")
    with serving(demo_bundle, tmp_path, *flags, start=start) as server:
        url = send(server, "a.txt", TEXT).json()["translatedFileUrl"]
        assert len(list((tmp_path / "tmp").rglob("*.txt"))) == 1
        end = time.monotonic() + 10
        while list((tmp_path / "tmp").rglob("*.txt")):  # Nobody asks meanwhile.
            assert time.monotonic() < end
            time.sleep(0.1)
        assert httpx.get(url).status_code == 404
        send(server, "a.txt", TEXT)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_client_libretranslate_aio(server: Server, german: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(TEXT)
    with LibreTranslate(server.url) as client:
        url = client.translate_file(path, "en", "de").translated_file_url
        assert httpx.get(url).text == german
        settings = client.frontend_settings()
        assert set(settings.supported_files_format) == set(FORMATS)
        with pytest.raises(BadRequestError, match="file format not supported"):
            client.translate_file(path.rename(path.with_suffix(".pdf")), "en", "de")


def test_any_worker_has_the_file(demo_bundle: Path, german: str, tmp_path: Path) -> None:
    with serving(demo_bundle, tmp_path, "--workers", "2") as server:
        url = send(server, "a.txt", TEXT).json()["translatedFileUrl"]
        workers: set[int] = set()
        for attempt in range(200):
            answer = httpx.get(url, headers={"X-Request-ID": f"d{attempt}"})
            assert answer.text == german
            workers.add(server.logged(f"d{attempt}")["worker"])
            if len(workers) == 2:
                break
        assert len(workers) == 2


def test_keys_and_switching_off(demo_bundle: Path, tmp_path: Path) -> None:
    with serving(demo_bundle, tmp_path, "--no-files") as server:
        answers: list[Answer | httpx.Response] = [send(server, "a.txt", TEXT)]
        answers += [httpx.get(f"{server.url}/download_file/x")]
        for answer in answers:
            assert isinstance(answer, httpx.Response)
            assert (answer.status_code, list(answer.json())) == (403, ["error"])
        found = server.get("/frontend/settings").json
        assert (found["filesTranslation"], found["supportedFilesFormat"]) == (False, [])
