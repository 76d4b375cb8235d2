"""Files of golden/methods and their cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor

METHODS = Path(__file__).parents[1] / "golden" / "methods"
NAMES = sorted({path.stem for path in METHODS.iterdir()})


class Case(NamedTuple):
    """Inputs, outputs and parameters of a case, by the names in its sidecar."""

    given: dict[str, Tensor]
    out: dict[str, Tensor]
    params: dict[str, Any]
    name: str


def sidecar(name: str) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((METHODS / f"{name}.json").read_text(encoding="utf-8"))
    return about


def shapes(name: str) -> dict[str, list[int]]:
    """Every tensor that the sidecar lists."""
    about = sidecar(name)
    if "cases" not in about:
        return {key: tensor["shape"] for key, tensor in about["tensors"].items()}
    return {
        f"{case['name']}.{way}.{key}": shape
        for case in about["cases"]
        for way in ("in", "out")
        for key, shape in case[f"{way}puts"].items()
    }


def cases(name: str) -> list[str]:
    """The cases that a sidecar lists, or else the variants that its outputs are named by.

    `out.mean.x` is an output of the variant "mean", `out.x` one of all variants; a file without
    variants is one case, "". Stages follow each other, and are no variants.
    """
    about = sidecar(name)
    if "cases" in about:
        return [case["name"] for case in about["cases"]]
    named = [key.split(".")[1:-1] for key in about["tensors"] if key.startswith("out.")]
    variants = dict.fromkeys(".".join(v) for v in named if v and not v[0].startswith("stage"))
    return list(variants) or [""]


def golden(name: str, case: str) -> Case:
    """One case; what is named by a variant also stands under the rest of its name."""
    about, tensors = sidecar(name), load_file(METHODS / f"{name}.safetensors")
    if "cases" in about:
        params = next(c["params"] for c in about["cases"] if c["name"] == case)
        given, out = (below(tensors, f"{case}.{way}.") for way in ("in", "out"))
    else:
        params = about["parameters"].get(case, about["parameters"])
        every = (below(tensors, "in."), below(tensors, "out."))
        given, out = (way | below(way, f"{case}.") for way in every)
    return Case(given, out, params, case)


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
