"""On a GPU nothing waits for the host, and all tensors of a pass are on the same device.

Every method runs on every tower of the kit without values, on a GPU that is not there: see
`fake_cuda`. Waits that are meant are listed here, each with its reason; any other one fails.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from fake_cuda import (
    MODE,
    ROOT,
    Answers,
    Wait,
    gpu,
    model_on_cuda,
    on_cuda,
    on_host,
    recorded,
)
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)
from vlm_models import videos

from bench.check.cases import CASES as KIT
from bench.check.cases import Case, Prompted
from bench.check.models import timm_vit
from bench.check.multimodal import qwen3_vl
from bench.check.probe import Probe
from bench.check.subject import Subject
from bench.core import BenchError, Learner, Plan, Reducer, Site
from bench.core.kinds import is_adaptive
from bench.core.registry import methods
from bench.engine.reduce import reduced
from bench.engine.tower import override

DOCS = ROOT / "docs" / "methods.md"
MODELS_OWN = ("transformers/", "timm/")  # waits of their own code, with a method or without

# File and function of ours that may wait, how often in a pass, and why.
ALLOWED: dict[str, tuple[int, str]] = {
    "bench/engine/families/decoder.py: LanguagePass.forward": (
        1, "prompts are unequally long: how many image tokens each has, once a prompt"
    ),
    "bench/engine/families/decoder.py: LanguagePass._alive": (
        1, "where the projector removed tokens: how many of each prompt, once a prompt"
    ),
    "bench/engine/families/crops.py: CropsPass.packed": (
        1, "the sizes of a batch's images, which the model else asks for one by one"
    ),
    "bench/engine/families/packed.py: PackedPass.forward": (
        1, "the sizes of a batch's images"
    ),
    "bench/engine/families/qwen_vl.py: PackedTower.positions": (
        3, "where images are made smaller: places, and weights of learned positions, are copied"
    ),
    "bench/engine/families/one_image.py: grouped": (
        6, "where patches were dropped: which groups remain, once an image, of which there are "
        "two, and behind each of two blocks that DeepStack looks at"
    ),
    "bench/engine/families/language.py: LanguageTower._video": (
        1, "the sizes of a batch's videos, once a prompt"
    ),
    "bench/engine/families/decoder.py: LanguagePass._frames": (
        1, "where videos are shown: how many of each prompt's tokens are theirs, once a prompt"
    ),
    "bench/engine/families/windows.py: Windows.remaining": (
        6, "attention within windows: how many tokens are left in each, once an image and removal"
    ),
    "bench/engine/families/joined.py: JoinedImagePass.forward": (
        1, "whether an image is padded, right behind the model's own look at them"
    ),
    "bench/engine/families/joined.py: JoinedPass._tiles": (
        1, "the same: how many groups of each image remain"
    ),
    "bench/engine/families/vilt.py: ViltTower._ordered": (
        1, "whether images fill their pixels, right behind the model's own look at them"
    ),
    "bench/engine/families/guide.py: TextGuide.texts": (
        1, "questions that are compared with patches: their words, which the host reads"
    ),
    "bench/models/guide.py: spelled": (1, "the same"),
}  # fmt: skip
DEEP = Case("timm deep", partial(timm_vit, depth=8))  # where FlowCut cuts more than once
TWINS = (  # of cases that are here
    "timm registers", "BLIP matching text", "Qwen2-VL vision", "Qwen2-VL projector",
    "Qwen2.5-VL language", "Qwen2.5-VL video", "OneVision video",
)  # fmt: skip
ACTING = ("timm ViT", "timm deep", "LLaVA projector", "LLaVA language")  # all that may wait act
# What a method does by default, and what makes it adaptive or not: tried on those.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "ats": [{}, {"variant": "positional"}, {"drop_tokens": False}],
    "flowcut": [{}, {"over_batch": True}],
    "hiprune": [{}, {"recount": True}],
    "prumerge": [{}, {"adaptive": False}, {"plus": True}],
    "trim": [{}, {"adaptive": False}, {"pooled": True}],
}


def smaller(case: Case) -> Case:
    """A case with two prompts, and a language model that is not deep, but for LLaVA's."""
    if not isinstance(case, Prompted) or case.name == "LLaVA language":
        return case
    build: Any = case.build
    blocks = 6 if case.tower == "language" else 1
    return replace(case, batch=2, build=partial(build.func, blocks=blocks))


CASES = [smaller(case) for case in KIT if case.name not in TWINS]


@dataclass
class Seen:
    """A pass on the GPU: what waited, how often the method was asked, whether it is adaptive."""

    waits: list[Wait]
    calls: int
    adaptive: bool

    @property
    def ours(self) -> list[Wait]:
        """Waits that are not the model's own."""
        return [wait for wait in self.waits if not wait.place.startswith(MODELS_OWN)]

    @property
    def of_the_method(self) -> list[Wait]:
        """Waits in the method's files."""
        return [wait for wait in self.ours if wait.place.startswith(("methods/", "crossget/"))]


shared = cache(Subject)


@cache
def on_gpu(case: Case) -> Any:
    """The case's model on the GPU, and its inputs."""
    subject = shared(case)
    inputs = {name: on_cuda(t) for name, t in subject.inputs.items()}
    return model_on_cuda(subject.model), inputs


def made(probe: Probe) -> Reducer:
    """The method with what it learned still on the host, as it is read from a file."""
    reducer = probe.make()
    if isinstance(reducer, Learner):
        tables: dict[str, Any] = reducer.tables
        tables.update((name, on_host(t)) for name, t in tables.items())
    return reducer


def answers_of(probe: Probe, reducer: Reducer) -> Answers:
    """What a pass with values answers to whoever asks; raises where the method refuses."""
    model, budget = probe.subject.model, probe.budget(reducer)
    with reduced(model, reducer, **budget), recorded() as answers:
        probe.subject.run()
    return answers


def seen_on_gpu(case: Case, method: type[Reducer], params: dict[str, Any]) -> Seen | None:
    """A pass of a method on the GPU; None where it refuses the tower."""
    probe = Probe(method, case, params)
    try:
        answers = answers_of(probe, probe.make())
    except BenchError:
        return None
    model, inputs = on_gpu(case)
    reducer, calls = made(probe), []

    def counted(site: Site, r: int) -> Plan:
        calls.append(r)
        return type(reducer).plan(reducer, site, r)

    with (
        MODE,
        override(reducer, "plan", counted),
        reduced(model, reducer, **probe.budget(reducer)),
        gpu(answers) as waits,
    ):
        case.run(model, inputs)
    return Seen(waits, len(calls), is_adaptive(reducer))


def complaints(name: str, seen: Seen) -> list[str]:
    """Waits that are not allowed, in words."""
    of_method, wrong = seen.of_the_method, []
    if len(of_method) > seen.adaptive * seen.calls:
        wrong.append(f"{name} waits {len(of_method)} times in {seen.calls} removals: {of_method}")
    for place, times in Counter(wait.place for wait in seen.ours).items():
        if not place.startswith(("methods/", "crossget/")) and times > ALLOWED.get(place, (0,))[0]:
            wrong.append(f"{name}: {place} waits {times} times")
    return wrong


@cache
def all_seen(case: Case, only: str = "") -> list[tuple[str, Seen]]:
    """A pass of each method that the tower takes, or of one alone, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.check.probe.Subject", shared)
        passes = [
            (name, seen_on_gpu(case, method, params))
            for name, method in methods().items()
            if only in ("", name)
            for params in (VARIANTS.get(name, [{}]) if case.name in ACTING else [{}])
        ]
    return [(name, seen) for name, seen in passes if seen is not None]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_waits_that_is_not_listed(case: Case) -> None:
    passes = all_seen(case)
    assert not [wrong for name, seen in passes for wrong in complaints(name, seen)]
    assert len(passes) >= 3, "hardly a method runs here"


@pytest.mark.parametrize(
    ("tower", "name"),
    [
        ("language", "random"),
        ("projector", "random"),
        ("projector", "pool"),
        ("vision", "tome"),
        ("projector", "evs"),
        ("projector", "dycoke"),
    ],
)
def test_videos_wait_no_more(tower: str, name: str) -> None:
    ((_, seen),) = all_seen(of_tower(tower), name)
    assert not complaints(name, seen)


@cache
def of_tower(tower: str) -> Case:
    """Videos of a Qwen3-VL, of which one tower is reduced."""
    build = partial(qwen3_vl, blocks=3)
    return Prompted("Qwen3-VL video", build, tower, batch=1, prompts=of_videos)


def of_videos(n: int, seed: int) -> Mapping[str, Tensor]:
    """So many prompts, each with a video."""
    return videos("Qwen3-VL", range(n))


def test_the_documentation_names_the_methods_that_wait() -> None:
    text = DOCS.read_text(encoding="utf-8").partition("## Waits on a GPU")[2]
    named = re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE)
    passes = [one for case in CASES if case.name in ACTING for one in all_seen(case)]
    passes += all_seen(DEEP, "flowcut")
    assert not [wrong for name, seen in passes for wrong in complaints(name, seen)]
    assert sorted(named) == sorted({name for name, seen in passes if seen.of_the_method})
    for name, method in methods().items():
        if is_adaptive(method):
            assert f"`{name}`" in text, f"{name} is adaptive: does it wait?"


def test_the_list_names_functions_that_exist() -> None:
    for entry in ALLOWED:
        file, _, function = entry.partition(": ")
        name = function.rpartition(".")[2]
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), entry


# --- planted faults -------------------------------------------------------------------------------


class Planted(Reducer):
    """Drops the last tokens, and does something on the way that a GPU would not like."""

    before = True

    def __init__(self, fault: Callable[[Tensor], Any]) -> None:
        self.fault = fault

    def plan(self, site: Site, r: int) -> Plan:
        self.fault(site.x)
        n = site.x.shape[1] - r
        return Plan(torch.arange(n, device=site.x.device).expand(len(site.x), -1))


RAISING: dict[str, tuple[Callable[[Tensor], Any], type[Exception]]] = {
    "item": (lambda x: x.sum().item(), DataDependentOutputException),
    "bool": (lambda x: bool(x.any()), DataDependentOutputException),
    "tolist": (lambda x: x[0, 0].tolist(), DataDependentOutputException),
    "equal": (lambda x: torch.equal(x, x + 1), DataDependentOutputException),
    "nonzero": (lambda x: x.nonzero(), DynamicOutputShapeException),
    "mask": (lambda x: x[x > 0], DynamicOutputShapeException),
    "tensor of the CPU": (lambda x: x + torch.ones(x.shape[-1]), RuntimeError),
    "index of the CPU": (
        lambda x: x.gather(1, torch.zeros(x.shape, dtype=torch.long)),
        RuntimeError,
    ),
}
NOTICED: dict[str, Callable[[Tensor], Any]] = {
    "copied to the CPU": lambda x: x.cpu(),
    "copied to the GPU": lambda x: torch.tensor([0, 1], device=x.device),
    "written by a mask": lambda x: x.clone().__setitem__(x > 0, x[0, 0, :1].expand(3)),
}


def planted(fault: Callable[[Tensor], Any]) -> list[Wait]:
    """A pass of a method with a fault."""
    case = next(case for case in CASES if case.name == "timm ViT")
    model, inputs = on_gpu(case)
    with gpu() as waits, reduced(model, Planted(fault), r=[0, 3, 0, 0]):
        case.run(model, inputs)
    return waits


def test_a_method_without_a_fault_passes() -> None:
    assert planted(lambda x: x.sum(1)) == []


@pytest.mark.parametrize("name", RAISING)
def test_a_planted_fault_raises(name: str) -> None:
    fault, error = RAISING[name]
    with pytest.raises(error):
        planted(fault)


@pytest.mark.parametrize("name", NOTICED)
def test_a_planted_copy_is_noticed(name: str) -> None:
    (wait,) = planted(NOTICED[name])
    assert wait.place.startswith("tests/test_fake_cuda.py: ")


def test_an_answer_that_is_known_is_a_wait_all_the_same() -> None:
    """What a pass with values answered lets the pass go on, and is not allowed by that."""
    case = next(case for case in CASES if case.name == "timm ViT")
    subject = shared(case)
    method = Planted(lambda x: x.sum().item())
    with reduced(subject.model, method, r=[0, 3, 0, 0]), recorded() as answers:
        subject.run()
    model, inputs = on_gpu(case)
    with gpu(answers) as waits, reduced(model, method, r=[0, 3, 0, 0]):
        case.run(model, inputs)
    assert [wait.what for wait in waits] == ["item"]
    assert complaints("planted", Seen(waits, 1, adaptive=False))
