"""Cross tokens (CrossGET, §3.1): one learned vector a layer and tower, and their files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


class CrossTokens:
    """The learned vectors of each tower, and the values they took in the last forward pass.

    Attributes:
        vectors: (L,C) by tower; a tower without them has zeros.
        values: by tower, one (B,1,C) a layer: the cross token as the layer saw it.
    """

    def __init__(self, vectors: Mapping[str, Tensor] | None = None) -> None:
        """Keep the tensors themselves, so that gradients reach the caller's parameters."""
        self.vectors: dict[str, Tensor] = dict(vectors or {})
        self.values: dict[str, dict[int, Tensor]] = {}

    @classmethod
    def of(cls, given: CrossTokens | Mapping[str, Tensor] | str | Path | None) -> CrossTokens:
        """Cross tokens from themselves, tensors by tower, or a safetensors file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a vector table is not (L,C).
        """
        if isinstance(given, CrossTokens):
            return given
        if isinstance(given, str | Path):
            given = load(given)
        for tower, table in (given or {}).items():
            if table.dim() != 2:
                raise ValueError(f"cross tokens of '{tower}' must be (L,C), not {table.shape}")
        return cls(given)

    def refreshed(self, x: Tensor, current_B1C: Tensor, layer: int, tower: str) -> Tensor:
        """(B,N,C) with the last token set to the detached `current` plus this layer's vector.

        Raises:
            ValueError: the tower's table has another depth or width than the model.
        """
        value = current_B1C.detach()
        table = self.vectors.get(tower)
        if table is not None:
            if layer >= len(table) or table.shape[1] != x.shape[2]:
                raise ValueError(
                    f"cross tokens of '{tower}' are {tuple(table.shape)}, but layer {layer} of "
                    f"width {x.shape[2]} asks for one"
                )
            value = value + table[layer].to(value)
        if x.requires_grad or value.requires_grad:  # only a loss reads them
            self.values.setdefault(tower, {})[layer] = value
        return torch.cat([x[:, :-1], value], 1)

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


def load(path: str | Path) -> dict[str, Tensor]:
    """The vectors of a safetensors file, which may hold a model's weights as well.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds no cross tokens.
    """
    from safetensors import safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"no cross tokens at {path}")
    with safe_open(str(path), "pt") as file:
        keys = [key for key in file.keys() if key.startswith("cross_tokens.")]  # noqa: SIM118
        if not keys:
            raise ValueError(f"{path} holds no tensor named cross_tokens.TOWER")
        return {key.removeprefix("cross_tokens."): file.get_tensor(key) for key in keys}
