"""The demo's tokenizer files, texts, and changes to a file, for the tests of the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DEMO = Path(__file__).resolve().parent.parent / "demo"
MODEL = DEMO / "model"
FILES = ("vocab.json", "sentencepiece.bpe.model", "tokenizer_config.json")

REAL = (
    "مرحبا بالعالم، كيف حالك اليوم؟",
    "नमस्ते दुनिया, आप कैसे हैं?",
    "สวัสดีชาวโลก วันนี้เป็นอย่างไรบ้าง",
    "안녕하세요, 오늘 날씨가 좋네요.",
    "こんにちは世界。今日はいい天気ですね。",
    "Γειά σου Κόσμε, τι κάνεις;",
    "שלום עולם, מה שלומך היום?",
    "გამარჯობა მსოფლიო",
    "Բարեւ աշխարհ",
    "வணக்கம் உலகம்",
    "សួស្តី​ពិភពលោក",
    "ሰላም ለዓለም",
    "İstanbul'da ılık bir gün, GROẞ und groß",
)


def sentences() -> Iterator[str]:
    for path in sorted((DEMO / "heldout").glob("*.??")):
        yield from path.read_text(encoding="utf-8").split("\n")


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")
