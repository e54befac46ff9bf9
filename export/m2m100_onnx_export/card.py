"""The model card of a bundle: what it is, where it comes from, its licence, and how it runs.

Takes plain facts. The card is no part of the bundle's manifest, since its owner may edit it: it
changes neither what a bundle computes nor which bundle it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from m2m100_onnx.bundle.graphs import Precision
from m2m100_onnx.bundle.manifest import FileRecord, Kind
from m2m100_onnx_export.hub import CARD_FILE

__all__ = ["Card", "licence_of"]

_NON_COMMERCIAL = "cc-by-nc"
_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)^---\s*$", re.MULTILINE | re.DOTALL)
_LICENCE = re.compile(r"^license:[ \t]*[\"']?([\w.+-]+)[\"']?[ \t]*$", re.MULTILINE)
# What the original checkpoints of each kind were published under; fine-tuned ones are made of them.
_ORIGINALS = {
    "nllb": "Meta published NLLB-200 under CC-BY-NC 4.0, which allows **no commercial use**.",
    "xlm": "Meta published XLM under CC-BY-NC 4.0, which allows **no commercial use**.",
    "m2m100": "Meta published M2M100 under the MIT licence.",
}


def licence_of(checkpoint: Path) -> str | None:
    """Returns the licence that a checkpoint's own model card names, None where it names none."""
    path = checkpoint / CARD_FILE
    text = path.read_text("utf-8", "replace") if path.is_file() else ""
    matter = _FRONT_MATTER.match(text)
    found = _LICENCE.search(matter[1]) if matter else None
    return found[1].lower() if found else None


@dataclass(frozen=True)
class Card:
    """What a model card says.

    Attributes:
        kind: what the graphs are.
        precision: the weights' precision.
        source: the checkpoint: its hub id, or the name of its local folder.
        revision: the hub commit of the checkpoint, or None for a local folder.
        licence: the licence that the checkpoint names, or None.
        family: whose original checkpoint it is made of: `m2m100`, `nllb` or `xlm`.
        languages: the codes of its languages.
        versions: the packages that made the bundle, by name.
        files: size and hash of every file.
        causal: whether a language model can generate.
        adapter: the name of the adapter's folder that was merged in, or None.
    """

    kind: Kind
    precision: Precision
    source: str
    revision: str | None
    licence: str | None
    family: str
    languages: Sequence[str]
    versions: Mapping[str, str]
    files: Mapping[str, FileRecord]
    causal: bool = False
    adapter: str | None = None

    def text(self) -> str:
        """Returns the card as Markdown, with the hub's metadata at its head."""
        parts = [self._metadata(), self._about(), self._licence(), self._usage(), self._files()]
        return "\n".join(parts)

    def _metadata(self) -> str:
        task = "translation"
        if self.kind == "language model":
            task = "text-generation" if self.causal else "fill-mask"
        facts: dict[str, object] = {
            "license": self.licence or "other",
            "library_name": "m2m100-onnx",
            "pipeline_tag": task,
            "tags": ["onnx", "m2m100-onnx", self.precision],
        }
        if not self.licence:
            facts["license_name"] = "unknown"
        if self.revision:  # Else it is the name of a folder, which the hub does not know.
            facts["base_model"] = self.source
        if self.languages:
            facts["language"] = list(self.languages)
        # JSON is YAML, and quotes what YAML would read as something else, such as the code `no`.
        lines = [f"{name}: {json.dumps(value)}" for name, value in facts.items()]
        return "\n".join(["---", *lines, "---", ""])

    def _about(self) -> str:
        what = "A translation model"
        if self.kind == "language model":
            what = f"A {'causal' if self.causal else 'masked'} language model"
        at = f" at revision `{self.revision}`" if self.revision else ""
        made = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        merged = ""
        if self.adapter is not None:
            merged = f"The adapter {_code(self.adapter)} was merged into its weights.\n"
        return f"""\
# {_code(self.source)} on onnxruntime, {self.precision}

{what} in ONNX, exported from {_code(self.source)}{at} with {made}. Its weights have the precision
{self.precision}. It runs with m2m100-onnx, without torch and transformers.
{merged}"""

    def _licence(self) -> str:
        named = f"The checkpoint names the licence {_code(self.licence)}." if self.licence else ""
        unknown = "The checkpoint names no licence; ask its source."
        lines = [named or unknown, _ORIGINALS[self.family]]
        if (self.licence or "").startswith(_NON_COMMERCIAL):
            lines.append("So this bundle must not be used commercially.")
        return "## Licence\n\n" + " ".join(lines) + "\n"

    def _usage(self) -> str:
        install, extra = "pip install 'm2m100-onnx[cpu,hub]'", ""
        source, target = _pair(self.languages)
        command = f"m2m100 translate --model FOLDER_OR_ID -s {source} -t {target} 'Text'"
        face, call = (
            "Translator",
            f'translate("Text", source_lang="{source}", target_lang="{target}")',
        )
        if self.kind == "language model":
            install = "pip install 'm2m100-onnx[cpu,hub,xlm]'"
            extra = f', language="{source}"' if self.languages else ""
            flag = f" --language {source}" if self.languages else ""
            command = f"m2m100 score --model FOLDER_OR_ID{flag} 'Text'"
            face, call = "LanguageModel", f'score("Text"{extra})'
        return f"""\
## How it runs

```
{install}
{command}
```

```python
from m2m100_onnx import {face}

model = {face}("FOLDER_OR_ID")
print(model.{call})
```
"""

    def _files(self) -> str:
        rows = [
            f"| {_code(name)} | {record.size:,} | `{record.sha256}` |"
            for name, record in sorted(self.files.items())
        ]
        return "\n".join(
            ["## Files", "", "| file | bytes | SHA-256 |", "|---|---:|---|", *rows, ""]
        )


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
