"""Checks the manual's manifests offline.

Kubernetes' objects against the schemas that kubernetes-validate brings, and KServe's, which those
lack, against the models of its SDK. Names that both files and the server share are compared, too.
Runs in an environment with both: see scripts/test-all.
"""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path
from typing import Any

import kserve.models
import kubernetes.client.models
import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "docs" / "examples" / "kubernetes"
KINDS = ["Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"]
VERSION = "1.31"


def documents(name: str) -> list[dict[str, Any]]:
    """Reads a file of manifests."""
    return [*yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))]


def problems(value: Any, kind: str, place: str = "") -> list[str]:
    """Returns what is wrong with a value of a model of KServe's SDK or of Kubernetes' client."""
    if found := re.fullmatch(r"[lL]ist\[(.+)\]", kind):
        if not isinstance(value, list):
            return [f"{place}: expected a list, found {value!r}"]
        return [
            p for n, each in enumerate(value) for p in problems(each, found[1], f"{place}[{n}]")
        ]
    if found := re.fullmatch(r"[dD]ict[\[(](\w+), (.+)[\])]", kind):
        return [
            p for key, each in value.items() for p in problems(each, found[2], f"{place}.{key}")
        ]
    model = getattr(kserve.models, kind, None) or getattr(kubernetes.client.models, kind, None)
    if model is None:
        kinds = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object}
        good = isinstance(value, kinds[kind])
        return [] if good else [f"{place}: expected {kind}, found {value!r}"]
    if not isinstance(value, dict):
        return [f"{place}: expected {kind}, found {value!r}"]
    names = {name: attribute for attribute, name in model.attribute_map.items()}
    wrong = [f"{place}.{key}: {kind} has no such field" for key in value if key not in names]
    for key in set(value) & set(names):
        wrong += problems(value[key], model.openapi_types[names[key]], f"{place}.{key}")
    return wrong


def refuses_nonsense(inference: dict[str, Any], deployment: dict[str, Any]) -> None:
    """Shows that both checks see what is wrong."""
    broken = copy.deepcopy(inference)
    broken["spec"]["predictor"]["minReplica"] = 1
    broken["spec"]["predictor"]["containers"][0]["image"] = 7
    assert len(problems(broken, "V1beta1InferenceService")) == 2
    broken = copy.deepcopy(deployment)
    broken["spec"]["replica"] = 1
    try:
        kubernetes_validate.validate(broken, VERSION, strict=True)
    except kubernetes_validate.ValidationError:
        return
    raise AssertionError("the schemas of Kubernetes let a field pass that is not theirs")


def main() -> int:
    """Checks everything; returns the exit status."""
    objects = documents("deployment.yaml")
    (inference,) = documents("inference-service.yaml")
    assert [each["kind"] for each in objects] == KINDS
    for each in objects:
        kubernetes_validate.validate(each, VERSION, strict=True)
    wrong = problems(inference, "V1beta1InferenceService")
    assert not wrong, wrong
    refuses_nonsense(inference, objects[0])

    deployment, service, budget, scaler = objects
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        budget["spec"]["selector"]["matchLabels"],
    ):
        assert selector == labels
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    metric = scaler["spec"]["metrics"][0]["pods"]["metric"]["name"]
    server = ROOT / "runtime" / "m2m100_onnx" / "server"
    assert f'"{metric}"' in (server / "metrics.py").read_text(encoding="utf-8")
    paths = re.findall(r"path: (/[\w/]+)", "".join(p.read_text() for p in FOLDER.glob("*.yaml")))
    routes = "".join(path.read_text(encoding="utf-8") for path in server.glob("*.py"))
    assert len(set(paths)) == 5
    assert [path for path in paths if f'"{path}"' not in routes] == []
    print(f"{len(objects) + 1} manifests are as their schemas say")
    return 0


if __name__ == "__main__":
    sys.exit(main())
