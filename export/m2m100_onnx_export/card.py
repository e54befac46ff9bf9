"""The model card of a bundle: what it is, where it comes from, its licence, and how it runs.

Takes plain facts. The card is no part of the bundle's manifest, since its owner may edit it: it
changes neither what a bundle computes nor which bundle it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from m2m100_onnx.bundle.graphs import Precision
from m2m100_onnx.bundle.manifest import FileRecord
from m2m100_onnx_export.licence import Licence

__all__ = ["Card", "Task"]

# The hub's names of tasks.
Task = Literal["translation", "text-generation", "fill-mask", "feature-extraction"]
_WHAT: dict[Task, str] = {
    "translation": "A translation model",
    "text-generation": "A causal language model",
    "fill-mask": "A masked language model",
    "feature-extraction": "A language model for sentence vectors",
}
# What the original checkpoints of each kind were published under; fine-tuned ones are made of them.
_ORIGINALS = {
    "nllb": "Meta published NLLB-200 under CC-BY-NC 4.0, which allows **no commercial use**.",
    "xlm": "Meta published XLM under CC-BY-NC 4.0, which allows **no commercial use**.",
    "m2m100": (
        "Meta published M2M100 under the MIT licence; a checkpoint that others trained may have "
        "another."
    ),
}
# The hub's list of languages has codes of ISO 639, and the hub refuses a card with capitals in it.
# NLLB's codes have a script behind them.
_LANGUAGE = re.compile(r"([a-z]{2,3})(?:[_-].*)?")
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True)
class Card:
    """What a model card says.

    Attributes:
        task: what the model is for.
        precision: the weights' precision.
        source: the checkpoint: its hub id, or the name of its local folder.
        revision: the hub commit of the checkpoint, or None for a local folder.
        family: whose original checkpoint it is made of: `m2m100`, `nllb` or `xlm`.
        languages: the codes of its languages.
        versions: the packages that made the bundle, by name.
        files: size and hash of every file.
        adapter: the name of the adapter that was merged in, or None.
        licences: the licences that the `checkpoint` and the `adapter` name, by these words.
    """

    task: Task
    precision: Precision
    source: str
    revision: str | None
    family: str
    languages: Sequence[str]
    versions: Mapping[str, str]
    files: Mapping[str, FileRecord]
    adapter: str | None = None
    licences: Mapping[str, Licence] = field(default_factory=dict)

    def text(self) -> str:
        """Returns the card as Markdown, with the hub's metadata at its head."""
        parts = [self._metadata(), self._about(), self._licence(), self._usage(), self._files()]
        return "\n".join(parts)

    def _metadata(self) -> str:
        facts: dict[str, object] = {
            **self._licence_metadata(),
            "library_name": "m2m100-onnx",
            "pipeline_tag": self.task,
            "tags": ["onnx", "m2m100-onnx", self.precision],
        }
        if self.revision:  # Else it is the name of a folder, which the hub does not know.
            facts["base_model"] = self.source
            if self.precision.startswith("int") and self.adapter is None:
                facts["base_model_relation"] = "quantized"
        found = map(_LANGUAGE.fullmatch, self.languages)
        codes = [*dict.fromkeys(match[1] for match in found if match)]
        if codes:
            facts["language"] = codes
        if codes != [*self.languages]:
            facts["language_details"] = ", ".join(self.languages)
        # JSON is YAML, and quotes what YAML would read as something else, such as the code `no`.
        lines = [f"{name}: {json.dumps(value)}" for name, value in facts.items()]
        return "\n".join(["---", *lines, "---", ""])

    def _licence_metadata(self) -> dict[str, object]:
        named = [licence for licence in self.licences.values() if licence.names]
        names = [*dict.fromkeys(name for licence in named for name in licence.names)]
        titles = [licence.title for licence in named if licence.title]
        if not all(map(_IDENTIFIER.fullmatch, names)):  # None of the hub's identifiers.
            titles, names = [*names, *titles], ["other"]
        facts: dict[str, object] = {"license": names[0] if len(names) == 1 else names or "other"}
        if not names:
            facts["license_name"] = "unknown"
        elif titles:
            # The hub takes no blanks here.
            facts["license_name"] = re.sub(r"[^a-z0-9.]+", "-", titles[0].lower()).strip("-")
        # A file is beside the card of the checkpoint, and not beside this one.
        links = [licence.link for licence in named if "://" in (licence.link or "")]
        return facts | ({"license_link": links[0]} if links else {})

    def _about(self) -> str:
        at = f" at revision `{self.revision}`" if self.revision else ""
        merged = f" with the adapter {_code(self.adapter)} merged in" if self.adapter else ""
        made = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"""\
# {_code(self.source)} on onnxruntime, {self.precision}

{_WHAT[self.task]} in ONNX, exported from {_code(self.source)}{at}{merged} by {made}. Its
weights have the precision {self.precision}. It runs with m2m100-onnx, without torch and
transformers.
"""

    def _licence(self) -> str:
        lines = [_named(what, licence) for what, licence in self.licences.items()]
        lines.append(_ORIGINALS[self.family])
        if any(licence.non_commercial for licence in self.licences.values()):
            lines.append("So this bundle must not be used commercially.")
        return "## Licence\n\n" + " ".join(lines) + "\n"

    def _usage(self) -> str:
        source, target = _pair(self.languages)
        flag, argument = "", ""
        if self.languages:
            flag, argument = f" --language {source}", f', language="{source}"'
        command, call = {
            "translation": (
                f"translate --model FOLDER_OR_ID -s {source} -t {target} 'Text'",
                f'translate("Text", source_lang="{source}", target_lang="{target}")',
            ),
            "feature-extraction": ("info FOLDER_OR_ID", f'encode(["Text"]{argument})'),
        }.get(
            self.task,
            (f"score --model FOLDER_OR_ID{flag} 'Text'", f'score("Text"{argument})'),
        )
        face = "Translator" if self.task == "translation" else "LanguageModel"
        return f"""\
## How it runs

```
pip install 'm2m100-onnx[{",".join(self._extras())}]'
m2m100 {command}
```

```python
from m2m100_onnx import {face}

model = {face}("FOLDER_OR_ID")
print(model.{call})
```
"""

    def _extras(self) -> list[str]:
        if self.task != "translation":
            return ["cpu", "hub", "xlm"]
        if any(name.endswith(".model") for name in self.files):
            return ["cpu", "hub"]
        return ["cpu", "hub", "nllb"]  # The tokenizer is in tokenizer.json alone.

    def _files(self) -> str:
        rows = [
            f"| {_code(name)} | {record.size:,} | `{record.sha256}` |"
            for name, record in sorted(self.files.items())
        ]
        return "\n".join(
            ["## Files", "", "| file | bytes | SHA-256 |", "|---|---:|---|", *rows, ""]
        )


def _named(what: str, licence: Licence) -> str:
    """Returns the sentence about the licence that the checkpoint or the adapter names."""
    if not licence.names:
        return f"The {what} names no licence; ask its source."
    names = " and ".join(map(_code, licence.names))
    title = f", {_code(licence.title)}" if licence.title else ""
    link = ""
    if licence.link:
        place = "" if "://" in licence.link else f" of the {what}"
        link = f" ({_code(licence.link)}{place})"
    return f"The {what} names the licence {names}{title}{link}."


def _code(name: str | None) -> str:
    """Returns a name as Markdown code, whatever it holds."""
    shown = " ".join(str(name).split()).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", shown)), default=0))
    blank = " " if "`" in shown else ""
    return f"{fence}{blank}{shown}{blank}{fence}"


def _pair(languages: Sequence[str]) -> tuple[str, str]:
    """Returns two languages for an example; English first where it is one of them."""
    english = [code for code in languages if code in ("en", "eng_Latn")]
    others = [code for code in languages if code not in english]
    chosen = [*english, *others, "en", "de"]
    return chosen[0], chosen[1]
