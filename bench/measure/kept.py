"""How many tokens a sample keeps, where a method decides that sample by sample."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bench.core import Observer

ALIKE = 0.02  # share of the tokens kept by which two means may differ


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


def note_if_unlike(task: Kept, counted: Kept, what: str) -> list[str]:
    """Return a note where a task's images keep other numbers of tokens than those that are counted.

    Args:
        task: what was kept in the task.
        counted: what was kept of the images that MACs and times are of.
        what: those images, in words.

    Returns:
        One line; none where both means are within 2 % of each other, or a side saw no sample.
    """
    if not task.samples or not counted.samples:
        return []
    if abs(task.mean / counted.mean - 1) <= ALIKE:
        return []
    note = f"where the method acts an image of the task keeps {task.mean:.1f} tokens"
    return [f"{note}, {what} that MACs and times are of {counted.mean:.1f}"]
