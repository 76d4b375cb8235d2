"""What the kit runs methods on: the towers of small models, and what goes into them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.check import models, multimodal, prompts
from bench.engine.families import adapter_for
from bench.measure.counts import MacCount
from bench.measure.macs import count_macs
from bench.models.multimodal import asked, noise

Inputs = Mapping[str, Tensor]
COSTED_WORDS = 7  # of a prompt of noise, beside its image


@dataclass(frozen=True)
class Case:
    """One tower of one kind of model.

    Attributes:
        name: for the table.
        build: makes the model.
        tower: which tower is reduced.
        part: the submodule that is called; "" is the whole model.
        masked: padding is masked out, so that those tokens stand for nothing.
        compiles: torch.compile is tried here; it costs more than all the rest.
        batch: samples that run at once.
    """

    name: str
    build: Callable[[], nn.Module]
    tower: str = "vision"
    part: str = ""
    masked: bool = False
    compiles: bool = False
    batch: int = 3

    def inputs(self, seed: int) -> Inputs:
        """Three images, or three texts of different length."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.tower == "vision":
                return {"pixel_values": models.images(self.batch)}
            ids = models.token_ids(self.batch)
        return {"input_ids": ids} | ({"mask": (ids != 0).long()} if self.masked else {})

    def alone(self, inputs: Inputs, i: int) -> Inputs:
        """One sample of them."""
        return {name: t[i : i + 1] for name, t in inputs.items()}

    @contextlib.contextmanager
    def sized(self, model: nn.Module, valueless: nn.Module) -> Iterator[tuple[Inputs, Inputs]]:
        """Inputs for the model, and shapes of the same size for its copy without values.

        Without values nobody can see what a mask hides, so that shapes come without one.
        """
        inputs = self.inputs(1)
        yield inputs, {name: t.to("meta") for name, t in inputs.items() if name != "mask"}

    def macs(self, model: nn.Module, inputs: Inputs) -> MacCount:
        """What the tower costs."""
        return count_macs(model.get_submodule(self.part), *inputs.values())

    def run(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """What the tower's reader says, (B,...)."""
        part: Any = model.get_submodule(self.part)
        out = part(*inputs.values())
        if isinstance(out, Tensor):
            return out
        return out.logits if "logits" in out else out.pooler_output  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Prompted(Case):
    """One tower of a multimodal language model, which answers a prompt with an image in it.

    Attributes:
        prompts: makes left-padded prompts, so many, from a seed.
    """

    batch: int = 4
    prompts: Callable[[int, int], Inputs] = prompts.llava_batch

    def inputs(self, seed: int) -> Inputs:
        """Prompts, no two of the same length."""
        return self.prompts(self.batch, seed - 1)

    def alone(self, inputs: Inputs, i: int) -> Inputs:
        """One prompt without its padding."""
        return prompts.alone(inputs, i)

    @contextlib.contextmanager
    def sized(self, model: nn.Module, valueless: nn.Module) -> Iterator[tuple[Inputs, Inputs]]:
        """A prompt of noise, as costs are counted on."""
        with asked(valueless, COSTED_WORDS) as shapes:
            yield noise(model, 1, COSTED_WORDS), shapes

    def macs(self, model: nn.Module, inputs: Inputs) -> MacCount:
        """What the prompt costs."""
        return count_macs(model, **inputs)

    def run(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """(B,V) the scores of the answer's first token."""
        return model(**inputs).logits[:, -1]  # type: ignore[no-any-return]


# Four blocks each, so that the usual layers 1, 2 and 3 leave the first block alone.
_clip, _siglip = partial(models.clip, text_layers=4), partial(models.siglip, text_layers=4)
_no_class = partial(models.timm_vit, class_token=False, global_pool="avg", fc_norm=True)
# few blocks of language where it is left alone
_llava, _llava_next = (
    partial(build, blocks=2) for build in (multimodal.llava, multimodal.llava_next)
)
# deep enough for the layers that methods name as shares of the depth
_deep, _qwen2_vl, _blip2 = (
    partial(build, blocks=12) for build in (multimodal.llava, multimodal.qwen2_vl, multimodal.blip2)
)
_short = partial(multimodal.qwen2_vl, blocks=2)

CASES = (
    Case("timm ViT", models.timm_vit, compiles=True),
    Case("timm no-class", _no_class),
    Case("timm registers", partial(models.timm_vit, reg_tokens=4)),
    Case("CLIP vision", _clip, part="vision_model"),
    Case("CLIP text", _clip, "text", "text_model", compiles=True),
    Case("CLIP text masked", _clip, "text", "text_model", masked=True),
    Case("SigLIP vision", _siglip, part="vision_model"),
    Case("SigLIP text", _siglip, "text", "text_model"),
    Case("HF ViT", models.hf_vit),
    Case("DINOv2", models.dinov2),
    Prompted("LLaVA vision", _llava),
    Prompted("LLaVA projector", _llava, "projector"),
    Prompted("LLaVA-NeXT projector", _llava_next, "projector", prompts=prompts.llava_next_batch),
    Prompted("LLaVA language", _deep, "language"),
    Prompted("Qwen2-VL vision", _short, batch=2, prompts=prompts.qwen2_vl_batch),
    Prompted("Qwen2-VL projector", _short, "projector", batch=2, prompts=prompts.qwen2_vl_batch),
    Prompted("Qwen2-VL language", _qwen2_vl, "language", prompts=prompts.qwen2_vl_batch),
    Prompted("BLIP-2 language", _blip2, "language", prompts=prompts.blip2_batch),
)


class Subject:
    """A case's model, built, a copy of it, and what it answers unreduced."""

    def __init__(self, case: Case) -> None:
        """Build it and run it, before any method has been made."""
        self.case = case
        with torch.random.fork_rng(devices=[]):
            self.model = case.build()
        self.towers = towers = adapter_for(self.model).towers(self.model)
        self.tower = towers[case.tower]
        # what a projector gets, its methods take from the image tower
        self.first = towers["vision" if case.tower == "projector" else case.tower]
        self.entry = self.first.blocks[0]
        self.shapes = {n: (len(t.blocks), t.width) for n, t in towers.items() if t.attn_parts}
        self.inputs, self.others = case.inputs(1), case.inputs(2)
        with self.counting() as lengths, torch.no_grad():
            self.plain = self.run()
        self.lengths = lengths
        self.twin = copy.deepcopy(self.model)
        self.before = snapshot(self.model)
        with torch.no_grad():
            self.run()
        # the model's own notes, which it renews in every pass
        self.renewed = set(changed(self.before, snapshot(self.model)))

    def run(self, inputs: Inputs | None = None, model: nn.Module | None = None) -> Tensor:
        """What the tower's reader says, (B,...)."""
        return self.case.run(model or self.model, self.inputs if inputs is None else inputs)

    @cached_property
    def valueless(self) -> nn.Module:
        """The model on the meta device, where tensors have shapes alone."""
        return copy.deepcopy(self.model).to("meta")

    @property
    def tokens(self) -> int:
        """Tokens of the sequence that has the fewest."""
        return min(self.lengths)

    @property
    def grids(self) -> list[tuple[int, int] | None]:
        """Rows and columns of each sequence; packed images have their own."""
        prefix, side = self.tower.prefix, int(self.tower.joins**0.5)
        packed = self.inputs.get("image_grid_thw")
        if packed is None or self.case.tower == "language":
            return [self.tower.grid(n - prefix) for n in self.lengths]
        return [(h // side, w // side) for _, h, w in packed.tolist()]

    @contextlib.contextmanager
    def counting(self) -> Iterator[list[int]]:
        """Note how many tokens each sequence has at the first block."""
        found: list[int] = []

        def note(_: Any, args: Any, kw: Any) -> None:
            counts = self.first.counts(args[0], args[0], kw)
            found[:] = [n // self.tower.joins for n, _ in counts]

        handle = self.entry.register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield found
        finally:
            handle.remove()

    @property
    def removable(self) -> int:
        """Tokens that may go, of the sample that has the fewest."""
        if self.case.tower == "language":
            return int((self.inputs["input_ids"] == multimodal.IMAGE).sum(1).min())
        return self.tokens - self.tower.n_protected

    def run_all(self) -> bool:
        """Run both towers of a dual encoder; returns whether it is one."""
        if self.shapes.keys() != {"vision", "text"}:
            return False
        images, ids = (
            next(iter(replace(self.case, tower=tower).inputs(1).values()))
            for tower in ("vision", "text")
        )
        self.model(pixel_values=images, input_ids=ids)
        return True

    def at_first_block(self, change: Callable[[Tensor], Tensor]) -> _Hook:
        """Let `change` see and replace the sequence (B,N,C) ahead of the first block."""
        return _Hook(self.entry, change)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Every attribute of every module, and copies of all weights."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            found[f"{name}.{key}"] = value
    return {**found, **{name: (t, t.clone()) for name, t in model.state_dict().items()}}


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Names of what differs between two snapshots: attributes by identity, weights by value."""
    for name in before.keys() | after.keys():
        old, new = before.get(name), after.get(name)
        if isinstance(old, tuple) and isinstance(new, tuple) and isinstance(old[0], Tensor):
            if not torch.equal(old[1], new[1]):
                yield name
        elif old is not new:
            yield name


class _Hook:
    def __init__(self, block: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        self.block, self.change = block, change

    def __enter__(self) -> None:
        self.handle = self.block.register_forward_pre_hook(
            lambda _, args: (self.change(args[0]), *args[1:])
        )

    def __exit__(self, *_: object) -> None:
        self.handle.remove()
