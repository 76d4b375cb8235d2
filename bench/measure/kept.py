"""How many tokens a sample keeps, where a method decides that sample by sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.core import Observer, observing
from bench.models import Loaded

ALIKE = 0.01  # of the tokens kept


@dataclass
class Kept(Observer):
    """An observer that counts the tokens which samples keep where a method acts."""

    tokens: int = 0
    samples: int = 0

    def kept(self, size: Tensor) -> None:
        """Count the tokens of each sample that are not empty slots, which pad a batch."""
        self.tokens += int((size > 0).sum())
        self.samples += len(size)

    @property
    def mean(self) -> float:
        """Tokens a sample, mean over the places where the method acts."""
        return self.tokens / self.samples


def unlike(loaded: Loaded, task: Kept) -> list[str]:
    """Say how far the images of a task are from the one that is counted and timed, if they are.

    Args:
        loaded: the model, reduced as it was on the task.
        task: what was counted there; nothing is said of nothing.
    """
    if not task.samples:
        return []
    with observing(Kept()) as example, torch.inference_mode():
        loaded.model(**loaded.example_inputs(1))
    if abs(task.mean / example.mean - 1) <= ALIKE:
        return []
    note = f"where the method acts an image of the task keeps {task.mean:.1f} tokens, the noise "
    return [note + f"image that MACs and times are of {example.mean:.1f}"]
