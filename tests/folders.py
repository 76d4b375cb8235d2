"""Tiny models and data in folders, as a user would have them: what `save_pretrained` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tiny
from PIL import Image

WORDS = ["red", "green", "blue", "black", "white", "square"]
SUITE = """\
name: tiny
models:
  - {{name: {vit}, tasks: ["imagefolder:{images}"]}}
methods:
  - {{name: tome, r: [4, 8]}}
  - {{name: evit, keep_rate: 0.5}}
profiles: cpu
batch_sizes: [1]
latency_seconds: 0.02
limit: 8
"""


def vit(folder: Path) -> Path:
    """A ViT classifier of 5 classes with its image processor."""
    tiny.hf_vit().save_pretrained(folder)
    _processor(folder, "ViTImageProcessor")
    return folder


def clip(folder: Path) -> Path:
    """A CLIP with its image processor and a word-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tiny.clip().save_pretrained(folder)
    _processor(folder, "CLIPImageProcessor")
    vocabulary = {"<pad>": 0, "<s>": 98, "</s>": 99, **{w: i + 1 for i, w in enumerate(WORDS)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 98), ("</s>", 99)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<pad>",
        model_max_length=14,
    ).save_pretrained(folder)
    return folder


def timm_vit(folder: Path) -> Path:
    """A timm VisionTransformer of 5 classes, as timm's own `save_for_hf` writes it."""
    from safetensors.torch import save_file

    settings = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2}
    model = tiny.timm_vit(**settings)
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    config: dict[str, Any] = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 5,
        "model_args": settings,
        "pretrained_cfg": {"input_size": [3, 32, 32]},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def images(folder: Path, each: int = 4) -> Path:
    """Five classes of noise pictures, one folder a class."""
    random = np.random.default_rng(0)
    for label in "abcde":
        (folder / label).mkdir(parents=True)
        for i in range(each):
            pixels = random.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


def captions(folder: Path, pictures: Path) -> Path:
    """A Karpathy-style split file: two captions a picture, one picture of another split."""
    rows = [
        {
            "filename": str(file.relative_to(pictures)),
            "split": "train" if file.name == "3.png" else "test",
            "sentences": [{"raw": f"{WORDS[i % 6]} square"}, {"raw": f"{WORDS[i % 5]} {i}"}],
        }
        for i, file in enumerate(sorted(pictures.rglob("*.png")))
    ]
    path = folder / "dataset.json"
    path.write_text(json.dumps({"images": rows}))
    return path


def _processor(folder: Path, kind: str) -> None:
    config = {
        "image_processor_type": kind,
        "size": {"height": 32, "width": 32},
        "crop_size": {"height": 32, "width": 32},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
