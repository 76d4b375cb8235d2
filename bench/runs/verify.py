"""Recompute the published costs: does this code count what the authors counted?

A figure is off when it differs by more than 1 % (or its own tolerance) and by more than half a unit
of its last printed digit. No weights are needed: costs depend on shapes alone, so the models are
built on the meta device, where tensors have no values and a ViT-H runs in a second.

    python run_bench.py verify
    python run_bench.py verify --only deit-s/evit --json
"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, Literal

import timm
import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench import adapter_for, count_macs, reduced, trace
from bench.measure.conventions import Decoder, prompt_macs
from bench.models.loaded import placed
from bench.models.noise import asked
from bench.records import published
from bench.records.published import UNITS, PublishedCost
from bench.runs.shape_only import on_meta

VERDICTS = {"ok": "green", "off": "bold red", "unsupported": "dim"}
Verdict = Literal["ok", "off", "unsupported"]


@dataclass(frozen=True)
class Check:
    """A published cost beside ours; `ours` is None where unsupported."""

    cost: PublishedCost
    ours: float | None

    @property
    def verdict(self) -> Verdict:
        """Whether the two agree."""
        if self.ours is None:
            return "unsupported"
        return "ok" if self.cost.within(self.ours) else "off"

    @property
    def difference_percent(self) -> float | None:
        """(ours - published) / published, in percent."""
        if self.ours is None:
            return None
        theirs = float(self.cost.published)
        return 100 * (self.ours - theirs) / theirs

    def as_dict(self) -> dict[str, Any]:
        """For a program to read."""
        return asdict(self.cost) | {
            "unit": UNITS[self.cost.quantity],
            "ours": self.ours,
            "difference_percent": self.difference_percent,
            "verdict": self.verdict,
        }


def checks(only: str | None = None) -> Iterator[Check]:
    """Recompute the published costs one by one; `only` as for `published.costs`."""
    for cost in published.costs(only):
        yield Check(cost, None if cost.unsupported else recompute(cost))


@lru_cache(maxsize=1)  # the costs of one model stand together in the data
def build(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build a model of the data file on the meta device, and one sample of input.

    Args:
        name: a key of the data file's `models`.

    Returns:
        The model in eval mode, and its inputs by name (timm's only one is called "x"; a language
        model's are made for each cost).
    """
    spec = published.model_spec(name)
    if spec["library"] == "shapes":
        return on_meta(name).model, {}
    with torch.device("meta"):
        if spec["library"] == "timm":
            model: Any = timm.create_model(name, pretrained=False)
            shapes: Any = {"x": {"shape": [1, *model.pretrained_cfg["input_size"]]}}
        else:
            model_class = getattr(transformers, spec["class"])
            model = model_class(model_class.config_class(**spec["config"]))
            shapes = spec["inputs"]
        return model.eval(), {key: _sample(**shape) for key, shape in shapes.items()}


def _sample(shape: list[int], fill: int | None = None, last: int | None = None) -> Tensor:
    """Noise of that shape, or token ids `fill` that end in `last`."""
    if fill is None:
        return torch.randn(shape)
    ids = torch.full(shape, fill, dtype=torch.long)
    if last is not None:
        ids[:, -1] = last
    return ids


def recompute(cost: PublishedCost) -> float:
    """Count one cost by this project's own code, in the unit of `cost.quantity`."""
    model, inputs = build(cost.model)
    if cost.quantity in ("gmacs_per_layer", "tflops", "tmacs"):
        prompts = cost.prompts or ((None, cost.words),)
        per_block = [macs for prompt in prompts for macs in _blocks(model, cost, *prompt)]
        mean = cost.quantity == "gmacs_per_layer"
        return sum(per_block) / (1e9 * len(per_block) if mean else 1e12 * len(prompts))
    with reduced(model, cost.method, **cost.params):
        if cost.quantity == "params_m":
            return sum(p.numel() for p in model.parameters()) / 1e6
        macs = _macs(model, inputs, cost)
    if cost.quantity == "gmacs_share":
        return macs / _macs(model, inputs, cost)
    return macs / 1e9


def _macs(model: nn.Module, inputs: dict[str, Tensor], cost: PublishedCost) -> int:
    if cost.passes:
        with torch.inference_mode(), torch.device("meta"):
            return sum(
                count_macs(
                    model.get_submodule(one["part"]),
                    **placed(model, {key: _sample(**s) for key, s in one["inputs"].items()}),
                ).total
                for one in cost.passes
            )
    chosen = {key: inputs[key] for key in cost.inputs or inputs}
    args = [chosen.pop("x")] if "x" in chosen else []
    with torch.inference_mode():
        return int(count_macs(model.get_submodule(cost.part), *args, **chosen).total)


def _blocks(model: Any, cost: PublishedCost, image: int | None, words: int) -> list[float]:
    """MACs of each block of a language model, from the tokens that are in it when it runs.

    The prompt has so many tokens of an `image` (None: of the model's own) and so many `words`.
    """
    with asked(model, words, image) as prompt, reduced(model, cost.method, **cost.params):
        if not cost.convention:
            counted = count_macs(model, **prompt).by_module
            blocks = adapter_for(model).towers(model)["language"].blocks
            names = {id(module): name for name, module in model.named_modules()}
            return [counted[names[id(block)]] for block in blocks]
        tokens = trace(model, **prompt).tokens["language"]
    text = model.config.text_config
    sizes = Decoder(text.hidden_size, text.intermediate_size)
    return [prompt_macs([n], sizes, cost.convention) for n, _ in tokens]


# --- what is shown ---


def _table(results: list[Check]) -> Table:
    """One section a figure, its id and source in the first row."""
    table = Table(title="Published costs, recomputed without weights")
    for name in ("figure", "cost"):
        table.add_column(name, overflow="fold")
    for name in ("published", "ours", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("unit", "verdict"):
        table.add_column(name, no_wrap=True)
    table.add_column("source; what was counted; why unsupported", overflow="fold")
    for _, group in groupby(results, key=lambda check: check.cost.figure):
        told = ""
        for i, check in enumerate(group):
            why = check.cost.unsupported
            remarks = (check.cost.source if i == 0 else "", check.cost.counted, why)
            remark = "; ".join(text for text in remarks if text and text != told)
            table.add_row(*_row(check, first=i == 0), remark)
            told = why
        table.add_section()
    return table


def _row(check: Check, first: bool) -> list[str]:
    cost, difference = check.cost, check.difference_percent
    return [
        cost.figure if first else "",
        cost.label,
        cost.published,
        "" if check.ours is None else f"{check.ours:.{max(3, cost.decimals)}f}",
        "" if difference is None else f"{difference:+.2f} %",
        UNITS[cost.quantity],
        f"[{VERDICTS[check.verdict]}]{check.verdict}[/]",
    ]


def main(json: bool = False, only: str | None = None) -> int:
    """Recompute the published costs and print them beside ours.

    Args:
        json: print one JSON document instead of the table.
        only: keep figures whose id contains this text.

    Returns:
        Exit status: 1 when a figure is off, else 0.
    """
    console = Console(stderr=json)
    if not console.is_terminal:
        console = Console(stderr=json, width=160)  # in a log: wide enough for the table
    results = []
    with console.status("recomputing") as status:
        for check in checks(only):
            status.update(f"recomputed {check.cost.figure} {check.cost.label}")
            results.append(check)
    counts = {verdict: sum(c.verdict == verdict for c in results) for verdict in VERDICTS}
    if json:
        print(jsonlib.dumps({"checks": [c.as_dict() for c in results], "counts": counts}, indent=1))
    else:
        console.print(_table(results))
        console.print(", ".join(f"{n} {verdict}" for verdict, n in counts.items()))
    return 1 if counts["off"] else 0
