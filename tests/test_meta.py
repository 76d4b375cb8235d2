"""Costs without values are those with values, on the families and towers that the kit lacks."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import blip_models
import pytest
import vlm_models
from torch import Tensor

import bench
from bench.check.cases import CASES, Case, Joint, Prompted
from bench.check.kit import FAILED, OK, check
from bench.check.subject import Subject
from bench.core.registry import methods
from bench.engine.families.one_image import OneImage
from bench.engine.tracing import trace
from bench.measure.macs import count_macs
from bench.models.noise import asked, noise

PAIRS = Joint("ViLT pairs vision", blip_models.vilt_pairs, words=9)
IN_THE_KIT = {case.name for case in CASES}
PROMPTED = [
    Prompted(
        f"{family} {tower}",
        partial(build, blocks=12 if tower == "language" else 2),
        tower,
        prompts=batch,
        batch=2,
    )
    for family, (build, batch) in vlm_models.MODELS.items()
    for tower in ("vision", "projector", "language")
    if f"{family} {tower}" not in IN_THE_KIT
]
shared = cache(Subject)


@pytest.mark.parametrize("case", [PAIRS, *PROMPTED], ids=lambda case: case.name)
def test_every_method_is_counted_without_values_as_with_them(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.check.probe.Subject", shared)
    findings = [f for name in methods() for f in check(name, cases=[case], properties=["meta"])]
    assert not [f.line() for f in findings if f.status == FAILED]
    equal = [f.method for f in findings if f.status == OK and not f.says]
    assert len(equal) >= 3, findings  # not all refused this model


def test_several_places_at_once_are_counted_alike() -> None:
    real, shape = vlm_models.llava_next(), vlm_models.llava_next().to("meta")
    places: list[Any] = [
        ("tome", {"r": {"vision": [0, 3, 0, 0]}}),
        ("random", {"keep_rate": {"projector": 0.5}}),
        ("divprune", {"keep_rate": {"language": 0.5}}),
    ]
    with bench.reduced(real, places), bench.reduced(shape, places):
        prompt = noise(real, words=7)
        with asked(shape, words=7) as shapes:
            a, b = count_macs(shape, **shapes), count_macs(real, **prompt)
            assert (a.by_module, a.reduction) == (b.by_module, b.reduction)  # operators may differ
            assert trace(shape, **shapes).tokens == trace(real, **prompt).tokens


def test_newlines_stay_where_the_patches_beside_them_go() -> None:
    model = vlm_models.llava_next().to("meta")
    with (
        bench.reduced(model, "vispruner", keep_rate={"projector": 1 / 6}),
        asked(model, words=7) as shapes,
    ):
        tokens = trace(model, **shapes).tokens["language"]
    assert tokens[0] == (5 * 6 + 12 + 7,) * 2  # six patches of each crop, a newline a row, words


def test_groups_that_cannot_be_left_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = [case for case in CASES if case.name == "Qwen2-VL vision"]
    right = OneImage.groups

    def fewer(self: OneImage, x: Tensor) -> tuple[Tensor, Tensor]:
        groups, at = right(self, x)
        return (groups[:, :10], at[:10]) if x.is_meta else (groups, at)

    monkeypatch.setattr(OneImage, "groups", fewer)
    (finding,) = check("random", cases=[case], properties=["meta"])
    assert finding.status == FAILED and "patches are left in 10 groups, not" in finding.says
