"""Images of a task, on which methods that keep as many tokens as an image needs are counted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import bench.models
from bench import tasks
from bench.measure.task_images import COUNT, task_pixels, with_pixels
from bench.models.loaded import Classifier


class Cropped:
    """A task that puts crops of different sizes to the model."""

    def __len__(self) -> int:
        return 4

    def evaluate(self, loaded: Classifier, limit: int, batch_size: int) -> None:
        for side in (8, 12):
            loaded.model(torch.zeros(limit, 1, side, side))


def test_as_many_as_are_counted_and_no_more_than_the_suite_scores() -> None:
    loaded, task = bench.models.load("embedded:vit-fashion"), tasks.load("fashion-mnist")
    pixels = task_pixels(loaded, task)
    assert pixels is not None and pixels.shape == (COUNT, 1, 28, 28)
    few = task_pixels(loaded, task, limit=5)
    assert few is not None and few.shape == (5, 1, 28, 28)


def test_crops_of_several_sizes_are_no_rows_of_images() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 4, 4), nn.AdaptiveAvgPool2d(1))
    loaded = Classifier("crops", model, (8, 8), channels=1)
    task: object = Cropped()
    assert task_pixels(loaded, task) is None  # type: ignore[arg-type]


def test_they_come_in_the_models_dtype_in_place_of_noise() -> None:
    loaded = bench.models.load("embedded:vit-fashion", dtype="bfloat16")
    images = torch.rand(3, 1, 28, 28)
    inputs = with_pixels(loaded, images)
    assert inputs is not None
    (seen,) = (value for value in inputs.values() if isinstance(value, Tensor))
    assert seen.dtype == torch.bfloat16 and torch.equal(seen, images.bfloat16())
    assert with_pixels(loaded, torch.rand(3, 3, 28, 28)) is None
