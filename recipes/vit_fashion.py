"""Train `vit-fashion`: a small timm VisionTransformer on Fashion-MNIST, from scratch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.assets.embedded import FASHION_MEAN, FASHION_STD, VIT_FASHION, raw
from bench.training.losses import autocast
from recipes.phases import Phase, Rates, Scratch, either, train_phases

LOW_RESOLUTION = 14
FULL_RESOLUTION = 28
LOW_EPOCHS = 7.0
FULL_EPOCHS = 1.0
VALIDATION_IMAGES = 2000


def normalise(images: NDArray[np.uint8]) -> Tensor:
    """Turn images (N,28,28) uint8 into normalised floats (N,1,28,28)."""
    return (torch.from_numpy(images.copy()).float().unsqueeze(1) / 255 - FASHION_MEAN) / FASHION_STD


def augment(x: Tensor, rng: torch.Generator) -> Tensor:
    """Mirror and shift each image of x (B,1,28,28) by up to two pixels."""
    count, _, height, width = x.shape
    mirror = torch.rand(count, 1, 1, 1, generator=rng) < 0.5
    x = torch.where(mirror, x.flip(-1), x)
    pad = F.pad(x, (2, 2, 2, 2), value=-FASHION_MEAN / FASHION_STD)
    dy, dx = torch.randint(0, 5, (2, count, 1), generator=rng)
    rows = (dy + torch.arange(height)).view(count, 1, height, 1)
    columns = (dx + torch.arange(width)).view(count, 1, 1, width)
    return pad[torch.arange(count).view(-1, 1, 1, 1), 0, rows, columns]


@torch.inference_mode()
def accuracy(model: nn.Module, x: Tensor, y: Tensor, batch: int = 100) -> float:
    """Return the share of right answers on images x (N,1,28,28) with labels y (N,)."""
    model.eval()
    right = [model(x[i : i + batch]).argmax(1) == y[i : i + batch] for i in range(0, len(x), batch)]
    return float(torch.cat(right).float().mean())


def build(**changes: Any) -> Any:
    """Return an untrained `vit-fashion`."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(**{**VIT_FASHION, **changes})


def train(settings: Scratch) -> dict[str, float]:
    """Train and write `vit_fashion.safetensors`; return accuracies in [0, 1]."""
    settings = settings.begun()
    device = settings.device
    images, labels = raw.fashion("train", settings.data_dir)
    x, y = normalise(images), torch.from_numpy(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held, used = order[:VALIDATION_IMAGES], order[VALIDATION_IMAGES:]
    # Interpolates the 14x14 position table when the image is smaller; the parameters stay the same.
    model = build(dynamic_img_size=True).to(device)
    for block in model.blocks:
        block.attn.fused_attn = False  # torch's fused attention is slow backwards in bf16 on a CPU
    settings.compile_blocks(model.blocks)

    def loss(indices: Tensor, pixels: int, rng: torch.Generator) -> Tensor:
        picked = used[indices]
        batch = augment(x[picked], rng)
        if pixels != FULL_RESOLUTION:
            batch = F.interpolate(batch, size=pixels, mode="area")
        with autocast(device):
            logits = model(batch.to(device))
        return F.cross_entropy(logits.float(), y[picked].to(device), label_smoothing=0.05)

    def evaluate() -> dict[str, float]:
        return {"validation": accuracy(model, x[held].to(device), y[held].to(device))}

    phases = [
        Phase(LOW_RESOLUTION, either(settings.low_epochs, LOW_EPOCHS), 128),
        Phase(FULL_RESOLUTION, either(settings.epochs, FULL_EPOCHS), 64),
    ]
    result = train_phases(
        settings, model, len(used), loss, evaluate, phases, Rates(), evaluate_every=1500
    )
    state = {k: v.detach().cpu().half().contiguous() for k, v in model.state_dict().items()}
    save_file(state, settings.out / "vit_fashion.safetensors")
    test_images, test_labels = raw.fashion("t10k", settings.data_dir)
    test = normalise(test_images).to(device), torch.from_numpy(test_labels).to(device)
    with torch.compiler.set_stance("force_eager"):
        return {**result, "test": accuracy(model, *test)}
