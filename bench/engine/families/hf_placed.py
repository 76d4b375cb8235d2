"""Adapter for Hugging Face encoders whose blocks are told where tokens are: DINOv3 and BEiT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from bench.core.errors import Unsupported
from bench.engine.families import Adapter
from bench.engine.families.hf import Family, VisionTower
from bench.engine.families.placed import PlacedPass
from bench.engine.masks import both
from bench.engine.tower import Tower

DINOV3 = Family(
    "vision",
    ("model.layer", "layer"),
    ("norm1", "attention", "layer_scale1", "drop_path"),
    ("norm2", "mlp", "layer_scale2", "drop_path"),
    "norm",
    has_class=True,
)
BEIT = Family(
    "vision",
    ("layers",),
    ("layernorm_before", "attention", "dropout", "drop_path"),
    ("layernorm_after", "mlp", "dropout", "drop_path"),
    "layernorm",
    has_class=True,
)


class RotaryTower(VisionTower):
    """Rotary embedding turns the patches' queries and keys by their places (DINOv3)."""

    pass_class: ClassVar[type[Any]] = PlacedPass

    def attend(self, block: Any, x: Tensor, run: Any, mask: Tensor | None, kw: Any) -> Tensor:
        """The attention's half; no angle for what a method appended."""
        cos, sin = kw["position_embeddings"]
        angles = run.rows(cos, self.prefix, (1.0,)), run.rows(sin, self.prefix, (0.0,))
        return super().attend(block, x, run, mask, {**kw, "position_embeddings": angles})

    def seers(self) -> Sequence[Any]:
        """Angles are made for the image's size."""
        return [self.part.embeddings, self.part.rope_embeddings]


class BiasedTower(VisionTower):
    """Attention is biased by how its tokens lie to each other, in each block or in all (BEiT)."""

    pass_class: ClassVar[type[Any]] = PlacedPass

    def __init__(self, part: Any, family: Family) -> None:
        """Note whether the model reads the mean of its patches, which is then one by sizes."""
        super().__init__(part, family)
        self.averages = self.restores = getattr(part.pooler, "layernorm", None) is not None

    def attend(self, block: Any, x: Tensor, run: Any, mask: Tensor | None, kw: Any) -> Tensor:
        """The attention's half, with a gain for each channel; `mask` has the bias of all blocks."""
        kw = dict(kw)
        interpolated, size = kw.pop("interpolate_pos_encoding", False), kw.pop("resolution")
        if block.relative_position_bias is not None:
            window = tuple(n // block.patch_size for n in size)
            bias = block.relative_position_bias(window, interpolated, dim_size=run.initial)
            mask = both(run.pairs(bias), mask)
        y = block.layernorm_before(x)
        y = block.attention(hidden_states=y, attention_mask=mask, **kw)[0]
        return x + block.drop_path(block.lambda_1 * block.dropout(y))  # type: ignore[no-any-return]

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """The MLP's half, with a gain for each channel."""
        y = block.dropout(block.mlp(block.layernorm_after(x)))
        return x + block.drop_path(block.lambda_2 * y)  # type: ignore[no-any-return]

    def seers(self) -> Sequence[Any]:
        """The model itself, which tells its blocks the image's size."""
        return [self.part]


class PlacedAdapter(Adapter):
    """DINOv3 and BEiT of transformers."""

    supports = ("transformers DINOv3", "transformers BEiT")
    classes = ("DINOv3ViTModel", "BeitModel", "BeitForImageClassification")

    def towers(self, model: Any) -> dict[str, Tower]:
        """The one vision tower."""
        if type(model).__name__ == "DINOv3ViTModel":
            return {"vision": RotaryTower(model, DINOV3)}
        return {"vision": BiasedTower(getattr(model, "beit", model), BEIT)}


class NaFlexAdapter(Adapter):
    """SigLIP 2 for images of any shape, which are padded to a length: it is refused."""

    supports = ()
    classes = ("Siglip2Model", "Siglip2VisionModel", "Siglip2ForImageClassification")

    def towers(self, model: nn.Module) -> dict[str, Tower]:
        """None.

        Raises:
            Unsupported: always.
        """
        raise Unsupported(
            f"{type(model).__name__} takes images as padded rows of patches (NaFlex), which is not "
            "supported; the checkpoints of SigLIP 2 with one image size are a SiglipModel and are"
        )
