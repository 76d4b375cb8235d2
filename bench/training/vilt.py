"""Train `vilt-emoji`: a small ViLT that judges statements about two scenes of emoji drawings.

It begins as the image encoder that names what patches depict. Beside the judgement it learns, by
heads that are thrown away, what each patch depicts, what is in each quarter of an image, and
whether the thing that a statement is about is there: a true or false alone teaches too little.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.adapters.base import original, override
from bench.joint_feeds import padded
from bench.tasks import scenes
from bench.tasks.statements import KINDS, Pair, pairs
from bench.training import blip, tower
from bench.training.augment import image_processor, normalise
from bench.training.loop import Job, Rates, Settings, fit

PAIRS, BATCH = 8192, 12  # a "pass", and pairs a step
EPOCHS = 1.4
DEPICTED, CONTAINED, PRESENT = 0.3, 0.5, 1.0  # weights of what is learned beside
FOLDER = "vilt_emoji"
WATCHED = 192


def build(vocabulary: int) -> Any:
    """An untrained ViLT for two images."""
    from transformers import ViltConfig, ViltForImagesAndTextClassification

    config = ViltConfig(
        **tower.shape(),
        vocab_size=vocabulary,
        max_position_embeddings=32,
        modality_type_vocab_size=3,
        num_images=2,
        num_labels=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_image_length=-1,
        pad_token_id=blip.PAD,
        id2label={0: "False", 1: "True"},
        label2id={"False": 0, "True": 1},
    )
    return ViltForImagesAndTextClassification(config)


class Reasoner(nn.Module):
    """The model, and the heads that are thrown away."""

    def __init__(self, vocabulary: int) -> None:
        """Build them, untrained."""
        super().__init__()
        self.model = build(vocabulary)
        self.named = tower.head()
        self.contained = nn.Linear(tower.WIDTH, 4 * (1 + len(scenes.NAMES)))
        self.present = nn.Linear(tower.WIDTH, 1)

    def forward(self, found: list[Pair], words: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Judge statements.

        Returns:
            Logits (B,2) of the statements; what is known of each image (2,B,C); logits of patches
            (2,B,P,names), and what these depict (2,B,P).
        """
        text = padded(words, [pair.text for pair in found])
        pooled, named, depicted = [], [], []
        for side in (0, 1):  # as the model itself does, which gives no tokens back
            with placed(self.model.vilt.embeddings) as place:
                out = self.model.vilt(
                    **text,
                    pixel_values=normalise(np.stack([pair.images[side] for pair in found])),
                    image_token_type_idx=side + 1,
                )
            pooled.append(out.pooler_output)
            patches = out.last_hidden_state[:, text["input_ids"].shape[1] + 1 :]
            named.append(self.named(patches))
            shown = [tower.depicted(pair.objects[side]) for pair in found]
            depicted.append(torch.stack(shown).gather(1, place[0]))
        logits = self.model.classifier(torch.cat(pooled, -1))
        return logits, torch.stack(pooled), torch.stack(named), torch.stack(depicted)

    def beside(self, known: Tensor, found: list[Pair]) -> Tensor:
        """Loss of what is in each quarter of the images (2,B,C), and of whether the thing is."""
        names = list(scenes.NAMES.values())
        quarters, there = (
            torch.zeros(2, len(found), 4, dtype=torch.long),
            torch.zeros(2, len(found)),
        )
        for b, pair in enumerate(found):
            for side, own in enumerate(pair.objects):
                for cell, thing in own.items():
                    quarters[side, b, cell] = 1 + names.index(thing.name)
                    there[side, b] += thing.name == pair.name
        about = torch.tensor([bool(pair.name) for pair in found]).expand(2, -1)
        contained = self.contained(known).unflatten(-1, (4, -1))
        present = self.present(known)[..., 0]
        return CONTAINED * F.cross_entropy(
            contained.flatten(0, 2), quarters.flatten()
        ) + PRESENT * F.binary_cross_entropy_with_logits(present[about], there[about])


@contextlib.contextmanager
def placed(embeddings: Any) -> Iterator[list[Tensor]]:
    """Note which patches of the image (B,P) the tokens are: ViLT shuffles them."""
    seen: list[Tensor] = []

    def noted(*args: Any, **kw: Any) -> Any:
        x, mask, (index, size) = original(embeddings, "visual_embed")(*args, **kw)
        seen.append(index[..., 0] * size[1] + index[..., 1])
        return x, mask, (index, size)

    with override(embeddings, "visual_embed", noted):
        yield seen


def loss_of(reasoner: Reasoner, found: list[Pair], words: Any) -> Tensor:
    """Cross entropy of the judgements, and what is learned beside."""
    logits, known, named, depicted = reasoner(found, words)
    judged = F.cross_entropy(logits, torch.tensor([int(pair.true) for pair in found]))
    beside = reasoner.beside(known, found)
    return judged + beside + DEPICTED * tower.naming(named, depicted)


@torch.inference_mode()
def watch(reasoner: Reasoner, words: Any, watched: list[Pair]) -> dict[str, float]:
    """Share of right judgements in percent, in all and by kind, and of objects' patches named."""
    reasoner.eval()
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    known: list[float] = []
    for start in range(0, len(watched), 32):
        some = watched[start : start + 32]
        logits, _, named, depicted = reasoner(some, words)
        known.append(tower.known(named, depicted))
        for pair, said in zip(some, logits.argmax(-1).tolist(), strict=True):
            right[pair.kind].append(bool(said) == pair.true)
    found = {kind: 100 * float(np.mean(own)) for kind, own in right.items()}
    every = 100 * float(np.mean(sum(right.values(), [])))
    return {"accuracy": every, **found, "named": float(np.mean(known))}


def train(settings: Settings) -> dict[str, float]:
    """Train, write `vilt_emoji/` in the settings' folder, and return the last scores."""
    from transformers import ViltImageProcessor, ViltProcessor

    settings.begun()
    begun = tower.trained(settings)
    words = blip.tokenizer()
    reasoner = Reasoner(len(words)).to(settings.device)
    tower.into_vilt(begun, reasoner.model.vilt)
    reasoner.named.load_state_dict(begun.named.state_dict())
    watched = pairs(WATCHED, seed=1)

    def loss(indices: Tensor, pixels: int, rng: torch.Generator, _: dict[str, Tensor]) -> Tensor:
        seed = int(torch.randint(1000, 2**31, (1,), generator=rng))  # smaller ones are for tests
        return loss_of(reasoner, pairs(BATCH, seed), words)

    epochs = EPOCHS if settings.epochs is None else settings.epochs
    phases = tower.phases(epochs, BATCH)
    rates = Rates(matrix=None, other=1e-3)
    job = Job(reasoner, PAIRS, loss, lambda: watch(reasoner, words, watched), phases, rates)
    last = fit(job, settings, evaluate_every=200)
    folder = settings.out / FOLDER
    reasoner.model.half().save_pretrained(folder)
    reasoner.model.float()
    size = {"shortest_edge": scenes.SIDE}
    images = image_processor(ViltImageProcessor, scenes.SIDE, size=size)
    ViltProcessor(images, words).save_pretrained(folder)
    return last
