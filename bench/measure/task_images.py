"""Images of a task as a model's image encoder gets them, for methods that decide image by image.

What an adaptive method keeps depends on what it sees: on noise it may keep twice as much as on a
photograph. Its MACs and times are therefore those of the task's own images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from bench.models.loaded import Loaded
    from bench.tasks import Task

COUNT = 32  # images that are counted one by one


def task_pixels(loaded: Loaded, task: Task, limit: int | None = None) -> Tensor | None:
    """Return (I,C,H,W) pixels of up to `COUNT` images, as the task puts them to the model.

    They are read off the patch embedding while the task runs. None where the model cuts its images
    up or packs them, so that a row is no image.

    Args:
        loaded: the model and how to feed it.
        task: what it is scored on.
        limit: of the task's samples, where a suite sets one.
    """
    wanted = min(COUNT, len(task), limit or COUNT)
    embedding = next((m for m in loaded.model.modules() if isinstance(m, nn.Conv2d)), None)
    if embedding is None:
        return None
    batches: list[Tensor] = []
    hook = embedding.register_forward_pre_hook(lambda _, inputs: batches.append(inputs[0]))
    try:
        task.evaluate(loaded, limit=wanted, batch_size=wanted)
    finally:
        hook.remove()
    pixels = torch.cat(batches) if len({batch.shape[1:] for batch in batches}) == 1 else None
    return None if pixels is None or len(pixels) < wanted else pixels[:wanted]


def with_pixels(loaded: Loaded, pixels: Tensor) -> dict[str, Any] | None:
    """Return the arguments of `loaded.model` with these images (B,C,H,W) in place of noise.

    None where the model takes images of another shape.
    """
    inputs = loaded.example_inputs(len(pixels))
    noise = inputs[loaded.image_argument]
    if noise.numel() != pixels.numel():
        return None
    return {**inputs, loaded.image_argument: pixels.reshape(noise.shape).to(noise)}
