"""Cross tokens (CrossGET, §3.1): one learned vector a layer and tower, and their files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bench.core import BenchError


class CrossTokens:
    """The learned vectors of each tower, and the values they took in the last forward pass.

    Attributes:
        vectors: (L,C) by tower; a tower without them has zeros.
        values: by tower, one (B,1,C) a layer: the cross token as the layer saw it.
    """

    def __init__(self, vectors: dict[str, Tensor] | None = None) -> None:
        """Keep the tensors themselves, so that gradients reach the caller's parameters.

        Raises:
            BenchError: a table is not (L,C).
        """
        self.vectors = {} if vectors is None else vectors
        for tower, table in self.vectors.items():
            if table.dim() != 2:
                raise BenchError(f"cross tokens of '{tower}' must be (L,C), not {table.shape}")
        self.values: dict[str, dict[int, Tensor]] = {}

    def refreshed(self, x: Tensor, anchor_B: Tensor | None, layer: int, tower: str) -> Tensor:
        """(B,N,C) with the cross token set to its detached running token plus this layer's vector.

        It is the last token, in a language model the first of the prompt; in a text what runs is
        the end-of-text token. `anchor_B` is where that, or the first of the prompt, is.

        Raises:
            ValueError: the tower's table has another depth or width than the model.
        """
        rows = torch.arange(len(x), device=x.device)
        last = anchor_B is None or tower == "vision"
        value = (x[:, -1:] if last else x[rows, anchor_B][:, None]).detach()
        table = self.vectors.get(tower)
        if last and table is None and not x.requires_grad:
            return x
        if table is not None:
            if layer >= len(table) or table.shape[1] != x.shape[2]:
                raise ValueError(
                    f"cross tokens of '{tower}' are {tuple(table.shape)}, but layer {layer} of "
                    f"width {x.shape[2]} asks for one"
                )
            value = value + table[layer].to(value)
        if x.requires_grad or value.requires_grad:  # only a loss reads them
            self.values.setdefault(tower, {})[layer] = value
        if tower != "language" or anchor_B is None:
            return torch.cat([x[:, :-1], value], 1)
        return x.scatter(1, anchor_B[:, None, None].expand(-1, 1, x.shape[2]), value)

    def stacked(self, tower: str) -> Tensor:
        """(L,B,C) values of the last forward pass (in training: with gradients enabled).

        Raises:
            ValueError: no pass with gradients has run in this tower.
        """
        if tower not in self.values:
            raise ValueError(f"no cross tokens seen in '{tower}': run a pass with gradients first")
        seen = self.values[tower]
        return torch.cat([seen[layer] for layer in sorted(seen)], 1).transpose(0, 1)

    def save(self, path: str | Path) -> None:
        """Write the vectors as safetensors, one `cross_tokens.TOWER` each."""
        from safetensors.torch import save_file

        tensors = {f"cross_tokens.{k}": v.detach().contiguous() for k, v in self.vectors.items()}
        save_file(tensors, str(path))
