"""Train `llava-emoji`: a small LlavaForConditionalGeneration on scenes of emoji drawings.

The image tower begins as that of `clip-emoji`; projector and language model are trained from
scratch, on answers (`recipes/dialogues.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.models import catalogue
from bench.tasks import scenes, vqa
from bench.training.losses import autocast
from recipes import dialogues
from recipes.augment import image_processor, normalise
from recipes.dialogues import Batch, Lessons, World
from recipes.phases import Scratch

PATCHES = 256
WORLD = World(tuple(scenes.NAMES.values()), scenes.SIDE, PATCHES)
LESSONS = Lessons(scenes=8192, batch=16, low=4.0, full=0.6, gaps=0.35)


def build_processor() -> Any:
    """Return what makes arguments of images and questions."""
    from transformers import CLIPImageProcessor

    images = image_processor(CLIPImageProcessor, scenes.SIDE, do_center_crop=False)
    return dialogues.build_processor(images, WORLD)


def build(vocabulary: int) -> Any:
    """Return an untrained `llava-emoji` around the image tower of `clip-emoji`."""
    clip = catalogue.load("embedded:clip-emoji").model
    vision = clip.config.vision_config.to_dict()
    model = dialogues.build(vision, 128, 256, vocabulary, PATCHES)
    model.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    return model


def features(model: Any, images: NDArray[np.uint8], device: str) -> Tensor:
    """Return the image encoder's patches (B,256,C) of scenes (B,64,64,3)."""
    with autocast(device, reads=True):
        pixels = normalise(images).to(device)
        tower = model.model.vision_tower(pixels, output_hidden_states=True)
        patches: Tensor = tower.hidden_states[-2][:, 1:]
    return patches


def train(settings: Scratch) -> dict[str, float]:
    """Train, write `llava_emoji/` in the settings' folder, and return its scores on the test."""
    settings = settings.begun()
    watched, asked = vqa.emoji(300, seed=1), vqa.emoji()
    processor = build_processor()
    words = processor.tokenizer
    model = build(len(words)).to(settings.device)

    def loss(index: Tensor, tokens: int, gaps: bool, rng: torch.Generator) -> Tensor:
        seed = int(torch.randint(2**31, (1,), generator=rng))
        numbers = np.random.default_rng(seed)
        images, placed = zip(*(scenes.compose(numbers) for _ in index), strict=True)
        batch = Batch(WORLD, placed, words, numbers, tokens, gaps)
        patches = features(model, np.stack(images), settings.device)
        return dialogues.loss_of(model, batch, patches, settings.device)

    def score(asked: vqa.QuestionAnswering, blank: bool = False) -> dict[str, float]:
        return dialogues.score("llava-emoji", model, processor, asked, WORLD, blank)

    dialogues.teach(settings, model, LESSONS, WORLD, loss, lambda: score(watched))
    folder = settings.out / "llava_emoji"
    model.half().save_pretrained(folder)
    model.float()  # scored as it is read back: the weights rounded to half precision
    processor.save_pretrained(folder)
    test, blank = score(asked), score(asked, blank=True)
    return {**test, **{f"blank_{name}": value for name, value in blank.items()}}
