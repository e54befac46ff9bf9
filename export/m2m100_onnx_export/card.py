"""The model card of a bundle: README.md, which the hub shows and people read.

Knows the hub's metadata, and the licences under which families were published. Refuses to guess: a
licence is what the source's own card states, or that of its family where it holds for everything
that is made of it, or unknown.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2m100_onnx.bundle.manifest import MANIFEST_FILE, Manifest, sha256_of
from m2m100_onnx.text.nllb import JSON_FILE
from m2m100_onnx_export.hub import CARD_FILE

__all__ = ["Use", "language_model_use", "translation_use", "write_card"]

_LARGEST_CARD = 4 << 20
_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_PRECISIONS = {
    "fp32": "the weights in 32 bits",
    "fp16": "weights and activations in 16 bits, for GPUs",
    "int8": "the weights in 8 bits",
    "int4": "the weights in 4 bits, in blocks of 32",
    "int4-int8": "the layers' weights in 4 bits, the embedding in 8",
}
_QUANTIZED = ("int8", "int4", "int4-int8")


@dataclass(frozen=True)
class _Published:
    """How the checkpoints of a family were published.

    Attributes:
        name: what they are called.
        license: the hub's name of the licence; None where it is not known.
        holds: whether the licence restricts what is made of the weights too.
    """

    name: str
    license: str | None
    holds: bool = False


_NLLB = _Published("NLLB-200", "cc-by-nc-4.0", holds=True)
_XLM = _Published("XLM", "cc-by-nc-4.0", holds=True)
_FAMILIES = {
    "m2m100": _Published("M2M100", "mit"),
    "small100": _Published("SMaLL-100", "mit"),
    "wmt21": _Published("wmt21-dense-24-wide", None),
    "nllb": _NLLB,
    "nllb-legacy": _NLLB,
}


@dataclass(frozen=True)
class Use:
    """What a bundle is for.

    Attributes:
        task: the hub's name of the task.
        model: what the model is, in words.
        languages: codes of its languages.
        command: the arguments of `m2m100` for an example.
        python: an example's lines. The bundle is the current folder in both.
        extras: what pip installs beside the runtime.
    """

    task: str
    model: str
    languages: tuple[str, ...]
    command: str
    python: str
    extras: tuple[str, ...] = ()


def translation_use(languages: Sequence[str]) -> Use:
    """Returns the use of a translation model, with an example from English if it can be."""
    source = next((code for code in ("en", "eng_Latn") if code in languages), languages[0])
    others = [code for code in languages if code != source] or [source]
    usual = ("fr", "fra_Latn", "de", "deu_Latn")
    target = next((code for code in usual if code in others), others[0])
    codes = f"source_lang={_quoted(source)}, target_lang={_quoted(target)}"
    flags = f"--source-lang {shlex.quote(source)} --target-lang {shlex.quote(target)}"
    python = f"""\
from m2m100_onnx import Translator

translator = Translator(".")
print(translator.translate("Open the file.", {codes}))"""
    command = f'translate --model . {flags} "Open the file."'
    return Use("translation", "translation model", tuple(languages), command, python)


def language_model_use(languages: Sequence[str], *, causal: bool, has_head: bool) -> Use:
    """Returns the use of a language model, which scores English if it can."""
    code = "en" if "en" in languages else next(iter(languages), None)
    argument = "" if code is None else f", language={_quoted(code)}"
    if has_head:
        task = "text-generation" if causal else "fill-mask"
        call = f'score("Open the file."{argument})'
        flag = "" if code is None else f" --language {shlex.quote(code)}"
        command = f'score --model .{flag} "Open the file."'
    else:
        # No command writes vectors.
        task, command = "feature-extraction", "info ."
        call = f'encode("Open the file."{argument})'
    kind = f"{'causal' if causal else 'masked'} language model"
    python = f"""\
from m2m100_onnx import LanguageModel

model = LanguageModel(".")
print(model.{call})"""
    return Use(task, kind, tuple(languages), command, python, ("xlm",))


def write_card(work: Path, manifest: Manifest, use: Use, source: Path) -> None:
    """Writes README.md.

    The card is no part of the manifest: whoever edits it leaves the bundle as it is.

    Args:
        work: the bundle's folder, with all other files.
        manifest: the contents of its manifest.json.
        use: what the bundle is for.
        source: the checkpoint's folder, whose card states its licence.
    """
    terms = _License.of(source, _published(manifest))
    facts = _metadata(manifest, use, terms)
    metadata = "".join(f"{key}: {_yaml(value)}\n" for key, value in facts)
    text = "\n\n".join(_sections(work, manifest, use, terms))
    (work / CARD_FILE).write_text(f"---\n{metadata}---\n\n{text}\n", encoding="utf-8")


def _published(manifest: Manifest) -> _Published:
    return _XLM if manifest.kind == "language model" else _FAMILIES[manifest.family or "m2m100"]


# --- The licence ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _License:
    """A licence, as the hub's metadata has it.

    Attributes:
        metadata: `license`, and `license_name` and `license_link` where there are such.
        text: what the card says of it.
    """

    metadata: Mapping[str, Any]
    text: str

    @classmethod
    def of(cls, source: Path, published: _Published) -> _License:
        """Reads the card of a checkpoint's folder."""
        card = _front_matter(source / CARD_FILE)
        names = _license_names(card.get("license"))
        known = published.license
        origin = f" {published.name} was published under {_code(known)}" if known else ""
        metadata: dict[str, Any] = {"license": names[0] if len(names) == 1 else names}
        if names:
            metadata |= _license_details(card)
            shown = ", ".join(map(_code, [*names, *metadata.values()][len(names) - 1 :]))
            text = f"The card of the source states {shown}."
            if published.holds and known not in names:
                text += f"{origin}, which holds for what is made of its weights."
        elif published.holds:
            metadata["license"] = known
            text = f"The source states none.{origin}, which holds for what is made of its weights."
        else:
            metadata["license"] = "unknown"
            text = "Unknown: the source states none. Ask its owner."
            text += f"{origin}; what was made of it may have another licence." if origin else ""
        valid = [*names, *([known] if known and published.holds else [])]
        if any("nc" in name.lower().split("-") for name in valid):
            text += " **It allows no commercial use.**"
        return cls(metadata, text)


def _front_matter(path: Path) -> Mapping[str, Any]:
    """Returns the metadata of a card; nothing where there is none that can be read."""
    import yaml  # type: ignore[import-untyped]

    try:
        if path.stat().st_size > _LARGEST_CARD:
            return {}
        match = _FRONT_MATTER.match(path.read_text(encoding="utf-8"))
        found = yaml.safe_load(match[1]) if match else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _license_names(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    names = [name for name in values if isinstance(name, str)]
    # `unknown` is the hub's word for a licence that is not stated.
    return [name for name in names if name.strip() and name.lower() not in ("unknown", "none")]


def _license_details(card: Mapping[str, Any]) -> dict[str, str]:
    """Returns what a card says of a licence that the hub has no name for."""
    name, link = card.get("license_name"), card.get("license_link")
    found = {"license_name": name} if isinstance(name, str) else {}
    # A link inside the source's repository leads nowhere from here.
    if isinstance(link, str) and link.startswith(("https://", "http://")):
        found["license_link"] = link
    return found


# --- The parts of the card -----------------------------------------------------------------------


def _metadata(manifest: Manifest, use: Use, terms: _License) -> Iterator[tuple[str, Any]]:
    yield from terms.metadata.items()
    if manifest.revision is not None:
        # Of a local folder nobody knows the name on the hub.
        yield "base_model", manifest.source
        if manifest.precision in _QUANTIZED:
            yield "base_model_relation", "quantized"
    # The hub knows codes of ISO 639, which those of FLORES start with.
    codes = [re.split("[-_]", code)[0] for code in use.languages]
    if known := dict.fromkeys(code for code in codes if re.fullmatch("[a-z]{2,3}", code)):
        yield "language", [*known]
    if codes != list(use.languages):
        yield "language_details", " ".join(use.languages)
    yield "library_name", "m2m100-onnx"
    yield "pipeline_tag", use.task
    yield "tags", ["onnx", "onnxruntime", _published(manifest).name.lower(), manifest.precision]


def _sections(work: Path, manifest: Manifest, use: Use, terms: _License) -> Iterator[str]:
    published = _published(manifest)
    yield f"# {_code(manifest.source.rpartition('/')[2])} for onnxruntime, {manifest.precision}"
    yield (
        f"A {use.model} of the {published.name} architecture: ONNX graphs, weights and tokenizer. "
        "It runs with m2m100-onnx, without torch and transformers. Its source says what it was "
        "trained on, and where it fails."
    )
    yield "\n".join(f"- {name}: {value}" for name, value in _facts(manifest, use))
    yield f"## Licence\n\n{terms.text}"
    if manifest.adapter is not None:
        yield (
            f"The adapter {_code(manifest.adapter)} was merged into its weights. It may have a "
            "licence of its own."
        )
    extras = ",".join(("cpu", *use.extras, *(("nllb",) if _needs_tokenizers(manifest) else ())))
    yield (
        "## Use\n\nThis runs in the folder of the bundle. Elsewhere its path stands for `.`; with "
        "the extra `hub`, so does its name on the hub."
    )
    yield f"```bash\npip install 'm2m100-onnx[{extras}]'\nm2m100 {use.command}\n```"
    yield f"```python\n{use.python}\n```"
    yield (
        "## Files\n\nThe SHA-256 of each. This command compares them:\n\n"
        "```bash\ngrep -E '^[0-9a-f]{64}  ' README.md | sha256sum -c\n```"
    )
    hashes = {name: record.sha256 for name, record in manifest.files.items()}
    hashes[MANIFEST_FILE] = sha256_of(work / MANIFEST_FILE)
    yield "\n".join(["```text", *(f"{hashes[name]}  {name}" for name in sorted(hashes)), "```"])


def _needs_tokenizers(manifest: Manifest) -> bool:
    """Whether the vocabulary lies in tokenizer.json alone."""
    others = ("vocab.json", "sentencepiece.bpe.model")
    return JSON_FILE in manifest.files and not any(name in manifest.files for name in others)


def _facts(manifest: Manifest, use: Use) -> Iterator[tuple[str, str]]:
    yield "Source", _code(manifest.source)
    yield "Revision", _code(manifest.revision) if manifest.revision else "none, a local folder"
    yield "Precision", f"{manifest.precision}, {_PRECISIONS[manifest.precision]}"
    if use.languages:
        yield f"Languages, {len(use.languages)}", _code(" ".join(use.languages))
    packages = ("transformers", "torch", "onnx")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    yield "Made with", ", ".join([f"m2m100-onnx {manifest.exporter_version}", *versions])


# --- Text that comes from elsewhere --------------------------------------------------------------


def _quoted(code: str) -> str:
    return json.dumps(code, ensure_ascii=False)


def _plain(text: str) -> str:
    """Returns text in one line, without characters that are not shown."""
    shown = (" " if c.isspace() else c if c.isprintable() else "\ufffd" for c in text)
    return " ".join("".join(shown).split())


def _code(text: str) -> str:
    """Returns text as Markdown's code, in which nothing is markup."""
    text = _plain(text)
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    blank = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{blank}{text}{blank}{ticks}"


def _yaml(value: object) -> str:
    """Returns a text or a list of texts in YAML's flow style.

    All are quoted, since YAML reads `no`, the code of Norwegian, as false.
    """
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    escaped = _plain(str(value)).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
