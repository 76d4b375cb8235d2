"""A case's model, built once: what it answers unreduced, and whether it is as it was."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from bench.check.cases import Case, Inputs
from bench.engine.families import adapter_for


class Subject:
    """A case's model, a copy of it, and what it answers unreduced."""

    def __init__(self, case: Case) -> None:
        """Build it and run it, before any method has been made."""
        self.case = case
        self.answer: Any = None  # of a model that answers prompts, once somebody asked
        self._copies: dict[torch.dtype, nn.Module] = {}
        with torch.random.fork_rng(devices=[]):
            self.model = case.build()
        self.towers = towers = adapter_for(self.model).towers(self.model)
        self.tower = towers[case.tower]
        case.settle(self.tower)
        # what a projector gets, its methods take from the image tower
        self.first = towers["vision" if case.tower == "projector" else case.tower]
        self.entry = self.first.blocks[0]
        self.shapes = {n: (len(t.blocks), t.width) for n, t in towers.items() if t.attn_parts}
        self.inputs, self.others = (case.inputs(self.model, seed) for seed in (1, 2))
        with self.counting() as lengths, torch.no_grad():
            self.plain = self.run()
        self.films = case.films(self.inputs)
        self.lengths = [n for n, _ in self.films] or lengths
        self.twin = copy.deepcopy(self.model)
        self.before = snapshot(self.model)
        with torch.no_grad():
            self.run()
        # the model's own notes, which it renews in every pass
        self.renewed = set(changed(self.before, snapshot(self.model)))

    def run(self, inputs: Inputs | None = None, model: nn.Module | None = None) -> Tensor:
        """What the tower's reader answers, (B,...)."""
        return self.case.run(model or self.model, self.inputs if inputs is None else inputs)

    @cached_property
    def valueless(self) -> nn.Module:
        """The model on the meta device, where tensors have shapes alone."""
        return copy.deepcopy(self.model).to("meta")

    def in_dtype(self, dtype: torch.dtype) -> tuple[nn.Module, Inputs]:
        """A copy of the model, and its inputs, in another floating-point type."""
        if dtype not in self._copies:
            self._copies[dtype] = copy.deepcopy(self.model).to(dtype)
        inputs = {n: t.to(dtype) if t.is_floating_point() else t for n, t in self.inputs.items()}
        return self._copies[dtype], inputs

    @property
    def tokens(self) -> int:
        """Tokens of the sequence that has the fewest."""
        return min(self.lengths)

    @property
    def grids(self) -> list[tuple[int, int] | None]:
        """Rows and columns of each sequence, of a video's frame; packed images have their own."""
        if self.films:
            return [grid for _, grid in self.films]
        prefix, side = self.tower.prefix, int(self.tower.joins**0.5)
        packed = self.inputs.get("image_grid_thw")
        if packed is None or self.case.tower == "language":
            return [self.tower.grid(n - prefix) for n in self.lengths]
        return [(h // side, w // side) for _, h, w in packed.tolist()]

    @contextlib.contextmanager
    def counting(self) -> Iterator[list[int]]:
        """Note how many tokens each sequence has at the first block."""
        lengths: list[int] = []

        def note(_: Any, args: Any, kw: Any) -> None:
            counts = self.first.counts(args[0], args[0], kw)
            lengths[:] = [n // self.tower.joins for n, _ in counts]

        hook = self.entry.register_forward_pre_hook(note, with_kwargs=True)
        with self.first.watching(), hook:
            yield lengths

    @property
    def removable(self) -> int:
        """Tokens that may go, of the sample that has the fewest."""
        if self.case.tower == "language":
            tower: Any = self.tower
            return int(tower.image_of(self.inputs["input_ids"]).sum(1).min())
        return self.tokens - self.tower.n_protected

    def at_first_block(self, change: Callable[[Tensor], Tensor]) -> Any:
        """Let `change` see and replace the sequence (B,N,C) ahead of the first block, in a with."""
        return self.entry.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))

    def unchanged(self) -> str:
        """The name of an attribute or weight that is no longer as it was at first, or ""."""
        return min(set(changed(self.before, snapshot(self.model))) - self.renewed, default="")


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Every attribute of every module, and copies of all weights."""
    attributes = {
        f"{name}.{key}": value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
    }
    return {**attributes, **{name: (t, t.clone()) for name, t in model.state_dict().items()}}


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Names of what differs between two snapshots: attributes by identity, weights by value."""
    for name in before.keys() | after.keys():
        old, new = before.get(name), after.get(name)
        if isinstance(old, tuple) and isinstance(new, tuple) and isinstance(old[0], Tensor):
            if not torch.equal(old[1], new[1]):
                yield name
        elif old is not new:
            yield name
