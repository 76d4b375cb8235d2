"""Contrastive learning of images and texts: which texts a batch has, and the loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_LOGIT_SCALE = 4.6052  # log 100, as in CLIP


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, own: Tensor) -> Tensor:
    """Return the symmetric contrastive loss of images (B,D) and texts (U,D).

    `own` (B,) is the row of each image's text. Texts that belong to no image are negatives for the
    images only; two drawings of one concept share its text as equal positives.
    """
    scores = scale * image @ text.T
    matches = F.one_hot(own, len(text)).to(scores.dtype)
    asked = matches.sum(0) > 0
    shares = (matches / matches.sum(0).clamp_min(1)).T[asked]
    from_image = F.cross_entropy(scores, own, label_smoothing=0.05)
    return (from_image + F.cross_entropy(scores.T[asked], shares, label_smoothing=0.05)) / 2


def gathered(x: Tensor, processes: Any) -> Tensor:
    """Return the rows (B/P,D) of all P processes, in order; gradients reach this process's rows.

    `processes` is an accelerate.Accelerator. It averages gradients over the processes, where those
    of rows that one process alone has must count fully: so they are multiplied by P.
    """
    if processes.num_processes == 1:
        return x
    rows = list(processes.gather(x.detach()).chunk(processes.num_processes))
    if x.requires_grad:
        x = x.view_as(x)
        x.register_hook(lambda gradient: gradient * processes.num_processes)
    rows[processes.process_index] = x
    return torch.cat(rows)


def choose_texts(
    concept: Tensor, total: int, extra: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the concepts (U,) to caption: the batch's, each once, and `extra` others at random.

    Also returns the row (B,) of each image's own concept. Captions are cheap beside images, so
    more of them make a small batch a harder task at little cost.
    """
    unique, own = concept.unique(return_inverse=True)
    free = torch.ones(total, dtype=torch.bool)
    free[unique] = False
    others = torch.nonzero(free).flatten()
    picked = others[torch.randperm(len(others), generator=rng)[:extra]]
    return torch.cat([unique, picked]), own
