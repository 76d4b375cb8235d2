"""Costs as their authors printed them, and how to build what they belong to.

Everything is data: `bench/assets/data/published.json` names the model, method and parameters of each cost,
so that a new figure is a new row. A cost depends on shapes alone: the models are built on the meta
device, where tensors have no values and a ViT-H runs in a second.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from bench.core.errors import BenchError

if TYPE_CHECKING:
    from torch import Tensor, nn

UNITS = {
    "gmacs": "GMACs",
    "params_m": "M params",
    "gmacs_share": "of unreduced",
    "gmacs_per_layer": "GMACs/layer",
    "tflops": "TFLOPs",
    "tmacs": "TMACs",
    "ratio": "times",
}


@dataclass(frozen=True)
class Cost:
    """One published cost, and what to build to recompute it.

    Attributes:
        figure: id of the figure it belongs to, such as "deit-s/tome".
        label: which of the figure's costs, such as "r=13".
        quantity: a key of `UNITS`.
        published: the number as printed.
        source: where it stands.
        model: key of the data file's `models`; empty where unsupported.
        method: registry name of the method.
        params: keyword arguments for `bench.reduced`.
        part: submodule to count alone; empty for the whole model.
        inputs: the model's inputs that `part` takes, by name; empty for all.
        passes: forward passes of single parts that the figure adds up, each `{"part", "inputs"}`,
            where the authors' model runs them otherwise than ours; empty for one of the model.
        words: tokens of a language model's prompt beside the image's.
        convention: how its blocks' products are counted, a key of `conventions.CONVENTIONS`; empty
            where every operator that runs is.
        counted: what was counted, where that is not one forward pass of one sample.
        unsupported: why this cost is not recomputed; empty where it is.
        tolerance: share of the published value within which ours agrees.
        cut: the authors cut digits off instead of rounding, by what their figures show.
    """

    figure: str
    label: str
    quantity: str
    published: str
    source: str
    model: str = ""
    method: str = "none"
    params: dict[str, Any] = field(default_factory=dict)
    part: str = ""
    inputs: tuple[str, ...] = ()
    passes: tuple[dict[str, Any], ...] = ()
    words: int = 0
    convention: str = ""
    counted: str = ""
    unsupported: str = ""
    tolerance: str = "0.01"
    cut: bool = False

    @property
    def decimals(self) -> int:
        """Digits printed after the point."""
        return -int(Decimal(self.published).as_tuple().exponent)

    @property
    def rounding(self) -> Decimal:
        """Half a unit of the last printed digit."""
        return Decimal((0, (5,), -self.decimals - 1))

    def within(self, ours: float) -> bool:
        """Whether `ours` agrees: within the tolerance or the rounding, whichever is larger."""
        published = Decimal(self.published)
        if self.cut and 0 <= Decimal(repr(ours)) - published < 2 * self.rounding:
            return True
        return abs(Decimal(repr(ours)) - published) <= max(
            Decimal(self.tolerance) * published, self.rounding
        )


@dataclass(frozen=True)
class Beside:
    """What is printed of a model on a task, to be read beside rows that were measured here.

    Attributes:
        figure: id of the figure it belongs to.
        source: where it stands.
        model: how the names of the models end that it is about, or is the nearest to.
        task: the task's name up to its first colon.
        method: registry name of the method.
        accuracy: the numbers as printed, by the task's own metrics.
        setting: the method's, as printed.
        cost: label of the figure's cost that belongs to it; empty where none is printed.
        differs: what is otherwise than here.
    """

    figure: str
    source: str
    model: str
    task: str
    method: str
    accuracy: dict[str, str]
    setting: str = ""
    cost: str = ""
    differs: str = ""


@lru_cache(maxsize=1)
def _data() -> dict[str, Any]:
    text = files("bench.assets.data").joinpath("published.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def costs(only: str | None = None) -> list[Cost]:
    """The published costs, in the order of the data file.

    Args:
        only: keep figures whose id contains this text.

    Raises:
        BenchError: no figure's id contains `only`.
    """
    figures = [f for f in _data()["figures"] if only is None or only in f["id"]]
    if not figures:
        known = ", ".join(f["id"] for f in _data()["figures"])
        raise BenchError(f"no published figure matches '{only}' — known: {known}")
    lists = ("inputs", "passes")
    return [
        Cost(f["id"], source=f["source"], **{**cost, **{k: tuple(cost.get(k, ())) for k in lists}})
        for f in figures
        for cost in f["costs"]
    ]


def beside(model: str, task: str) -> list[tuple[Beside, Cost | None]]:
    """What is printed of this model on this task, each with its cost, in the data file's order."""
    rows = [
        Beside(f["id"], f["source"], **row)
        for f in _data()["figures"]
        for row in f.get("beside", [])
    ]
    by_name = {(cost.figure, cost.label): cost for cost in costs()}
    return [
        (row, by_name[row.figure, row.cost] if row.cost else None)
        for row in rows
        if model.endswith(row.model) and task.partition(":")[0] == row.task
    ]


@lru_cache(maxsize=1)  # the costs of one model stand together in the data
def build(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build a model of the data file on the meta device, and one sample of input.

    Args:
        name: a key of the data file's `models`.

    Returns:
        The model in eval mode, and its inputs by name (timm's only one is called "x"; a language
        model's are made for each cost).
    """
    import torch

    spec = _data()["models"][name]
    if spec["library"] == "shapes":
        from bench.runs.cost import on_meta

        return on_meta(name).model, {}
    with torch.device("meta"):
        if spec["library"] == "timm":
            import timm

            model: Any = timm.create_model(name, pretrained=False)
            shapes: Any = {"x": {"shape": [1, *model.pretrained_cfg["input_size"]]}}
        else:
            import transformers

            model_class = getattr(transformers, spec["class"])
            model = model_class(model_class.config_class(**spec["config"]))
            shapes = spec["inputs"]
        return model.eval(), {key: _sample(**shape) for key, shape in shapes.items()}


def _sample(shape: list[int], fill: int | None = None, last: int | None = None) -> Tensor:
    """Noise of that shape, or token ids `fill` that end in `last`."""
    import torch

    if fill is None:
        return torch.randn(shape)
    ids = torch.full(shape, fill, dtype=torch.long)
    if last is not None:
        ids[:, -1] = last
    return ids


def recompute(cost: Cost) -> float:
    """Count one cost by this project's own code, in the unit of `cost.quantity`."""
    from bench import reduced

    model, inputs = build(cost.model)
    if cost.quantity in ("gmacs_per_layer", "tflops", "tmacs"):
        per_block = _blocks(model, cost)
        mean = cost.quantity == "gmacs_per_layer"
        return sum(per_block) / 1e9 / len(per_block) if mean else sum(per_block) / 1e12
    with reduced(model, cost.method, **cost.params):
        if cost.quantity == "params_m":
            return sum(p.numel() for p in model.parameters()) / 1e6
        macs = _macs(model, inputs, cost)
    if cost.quantity == "gmacs_share":
        return macs / _macs(model, inputs, cost)
    return macs / 1e9


def _macs(model: nn.Module, inputs: dict[str, Tensor], cost: Cost) -> int:
    import torch

    from bench import count_macs
    from bench.models.loaded import placed

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


def _blocks(model: Any, cost: Cost) -> list[float]:
    """MACs of each block of a language model, from the tokens that are in it when it runs."""
    from bench import adapter_for, count_macs, reduced, trace
    from bench.measure.conventions import Decoder, prompt_macs
    from bench.models.multimodal import asked

    with asked(model, cost.words) as prompt, reduced(model, cost.method, **cost.params):
        if not cost.convention:
            counted = count_macs(model, **prompt).by_module
            blocks = adapter_for(model).towers(model)["language"].blocks
            names = {id(module): name for name, module in model.named_modules()}
            return [counted[names[id(block)]] for block in blocks]
        tokens = trace(model, **prompt).tokens["language"]
    text = model.config.text_config
    sizes = Decoder(text.hidden_size, text.intermediate_size)
    return [prompt_macs([n], sizes, cost.convention) for n, _ in tokens]
