"""Train `vilt-emoji`: a small ViLT that judges statements about two scenes of emoji drawings.

A true or false alone teaches too little. The first blocks begin as the image encoder that names
what patches depict, those on top as ones that look for what is alike (see `scene_encoder`). First
it learns to find the thing that a statement is about: beside the judgement, by heads that are
thrown away, what patches depict and words name, where the thing is, and whether it is there at all.
Then how many things there are, and whether each image is as the statement has it. It is shown some
of the patches, drawn anew each time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.engine.tower import original, override
from bench.models.joint import padded
from bench.tasks import scenes
from bench.tasks.statements import KINDS, Pair, pairs
from recipes import blip_emoji as blip
from recipes import scene_encoder
from recipes.augment import image_processor, normalise
from recipes.phases import Rates, Scratch, either, train_phases

PAIRS, BATCH = 8192, 16  # a "pass", and pairs a step
FINDING_EPOCHS, EPOCHS = 0.8, 2.4
READING = 2  # blocks on top of the image encoder's
PATCHES = 96  # of 256 are shown in training
NAME_AT = 4  # where a statement says what it is about, its first token counted
FOLDER = "vilt_emoji"
WATCHED = 192


def build(vocabulary: int) -> Any:
    """An untrained ViLT for two images."""
    from transformers import ViltConfig, ViltForImagesAndTextClassification

    shape = scene_encoder.shape()
    config = ViltConfig(
        **{**shape, "num_hidden_layers": shape["num_hidden_layers"] + READING},
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


@dataclass(frozen=True)
class Judged:
    """What the model makes of B statements: logits (B,2), and of each image what it knows.

    `pooled` (2,B,C); `named` (2,B,T+1+P,names) logits of words and patches after the image
    encoder's blocks; `patches` (2,B,P) which these are; `place` (2,B,5) logits of where it is.
    """

    logits: Tensor
    pooled: Tensor
    named: Tensor
    patches: Tensor
    place: Tensor

    def depicted(self, statements: list[Pair]) -> Tensor:
        """What the patches (2,B,P) depict."""
        shown = [
            [scene_encoder.depicted(pair.objects[side]) for pair in statements] for side in (0, 1)
        ]
        return torch.stack([torch.stack(side) for side in shown]).gather(2, self.patches)

    def of_patches(self) -> Tensor:
        """(2,B,P,names) logits."""
        return self.named[:, :, -self.patches.shape[-1] :]


class Reasoner(nn.Module):
    """The model, and the heads that are thrown away."""

    def __init__(self, vocabulary: int) -> None:
        """Build them, untrained."""
        super().__init__()
        self.model = build(vocabulary)
        self.norm = nn.LayerNorm(scene_encoder.WIDTH, eps=1e-5)
        self.named = scene_encoder.head()
        self.place = nn.Linear(scene_encoder.WIDTH, 5)
        self.present, self.fits = (
            nn.Linear(scene_encoder.WIDTH, 1),
            nn.Linear(scene_encoder.WIDTH, 1),
        )
        self.count = nn.Linear(scene_encoder.WIDTH, 5)

    def begin(self, begun: scene_encoder.Tower) -> None:
        """Take over what the image encoder knows; the blocks on top look for what is alike."""
        scene_encoder.into_vilt(begun, self.model.vilt)
        self.norm.load_state_dict(begun.model.post_layernorm.state_dict())
        self.named.load_state_dict(begun.named.state_dict())
        for block in self.model.vilt.encoder.layer[-READING:]:
            attention = block.attention.attention
            scene_encoder.look_for_like(
                attention.query, attention.key, attention.value, block.attention.output.dense
            )

    def forward(self, statements: list[Pair], words: Any, patches: int = -1) -> Judged:
        """Judge statements from so many patches, -1 for all."""
        text = padded(words, [pair.text for pair in statements])
        pooled, named, place = [], [], []
        with placed(self.model.vilt.embeddings, patches) as chosen:
            for side in (0, 1):  # as the model itself does, which gives no tokens back
                out = self.model.vilt(
                    **text,
                    pixel_values=normalise(np.stack([pair.images[side] for pair in statements])),
                    image_token_type_idx=side + 1,
                    output_hidden_states=True,
                )
                pooled.append(out.pooler_output)
                named.append(self.named(self.norm(out.hidden_states[scene_encoder.BLOCKS])))
                place.append(self.place(out.hidden_states[scene_encoder.BLOCKS + 1][:, NAME_AT]))
        logits = self.model.classifier(torch.cat(pooled, -1))
        parts = (torch.stack(side) for side in (pooled, named, chosen, place))
        return Judged(logits, *parts)


@contextlib.contextmanager
def placed(embeddings: Any, patches: int) -> Iterator[list[Tensor]]:
    """Show ViLT so many patches, and note which of the image's (B,P) they are: it shuffles them."""
    seen: list[Tensor] = []

    def noted(pixels: Tensor, mask: Tensor, max_image_length: int) -> Any:
        shown = original(embeddings, "visual_embed")(pixels, mask, max_image_length=patches)
        index, size = shown[2]
        seen.append(index[..., 0] * size[1] + index[..., 1])
        return shown

    with override(embeddings, "visual_embed", noted):
        yield seen


def finding(reasoner: Reasoner, statements: list[Pair], out: Judged) -> Tensor:
    """Loss of what patches depict and words name, of where the thing is, and of whether it is."""
    names = list(scenes.NAMES.values())
    about = torch.tensor([bool(pair.name) for pair in statements])
    named_things = torch.tensor([1 + names.index(pair.name) for pair in statements if pair.name])
    where = torch.tensor([[_where(pair, side) for pair in statements] for side in (0, 1)])[:, about]
    loss = 0.3 * scene_encoder.naming(out.of_patches(), out.depicted(statements))
    loss += 0.3 * F.cross_entropy(
        out.named[:, about, NAME_AT].flatten(0, 1), named_things.repeat(2)
    )
    loss += 0.5 * F.cross_entropy(out.place[:, about].flatten(0, 1), where.flatten())
    there = reasoner.present(out.pooled[:, about])[..., 0]
    loss += 0.5 * F.binary_cross_entropy_with_logits(there, (where > 0).float())
    return loss


def _where(pair: Pair, side: int) -> int:
    """The quarter of an image that shows the thing, counted from 1; 0 where it is not."""
    return next((1 + c for c, thing in pair.objects[side].items() if thing.name == pair.name), 0)


def weighing(reasoner: Reasoner, statements: list[Pair], out: Judged) -> Tensor:
    """Loss of how many things there are, and of whether each image is as the statement has it."""
    about = torch.tensor([bool(pair.name) for pair in statements])
    many = torch.tensor([[len(pair.objects[side]) for pair in statements] for side in (0, 1)])
    fits = torch.tensor([pair.fits for pair in statements if pair.fits]).T.float()
    counted = F.cross_entropy(reasoner.count(out.pooled).flatten(0, 1), many.flatten())
    fitting = reasoner.fits(out.pooled[:, about])[..., 0]
    return 0.3 * counted + 0.7 * F.binary_cross_entropy_with_logits(fitting, fits)


@torch.inference_mode()
def watch(reasoner: Reasoner, words: Any, watched: list[Pair]) -> dict[str, float]:
    """Share of right judgements in percent, in all and by kind, and of objects' patches named."""
    reasoner.eval()
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    known: list[float] = []
    for start in range(0, len(watched), 32):
        some = watched[start : start + 32]
        out = reasoner(some, words)
        known.append(scene_encoder.known(out.of_patches(), out.depicted(some)))
        for pair, judgement in zip(some, out.logits.argmax(-1).tolist(), strict=True):
            right[pair.kind].append(bool(judgement) == pair.true)
    shares = {kind: 100 * float(np.mean(hits)) for kind, hits in right.items()}
    every = 100 * float(np.mean(sum(right.values(), [])))
    return {"accuracy": every, **shares, "named": float(np.mean(known))}


def train(settings: Scratch) -> dict[str, float]:
    """Train, write `vilt_emoji/` in the settings' folder, and return the last scores."""
    from transformers import ViltImageProcessor, ViltProcessor

    settings = settings.begun()
    begun = scene_encoder.trained(settings)
    words = blip.tokenizer()
    reasoner = Reasoner(len(words)).to(settings.device)
    reasoner.begin(begun)
    watched = pairs(WATCHED, seed=1)

    def run(settings: Scratch, epochs: float, weigh: bool) -> dict[str, float]:
        def loss(_: Tensor, __: int, rng: torch.Generator) -> Tensor:
            seed = int(torch.randint(1000, 2**31, (1,), generator=rng))  # smaller: for tests
            statements = pairs(BATCH, seed)
            out = reasoner(statements, words, PATCHES)
            judged = F.cross_entropy(
                out.logits, torch.tensor([int(pair.true) for pair in statements])
            )
            judged = judged + finding(reasoner, statements, out)
            return judged + weighing(reasoner, statements, out) if weigh else judged

        kept = ("model.vilt.embeddings.patch", "model.vilt.embeddings.position")
        blocks = tuple(f"model.vilt.encoder.layer.{i}." for i in range(scene_encoder.BLOCKS))
        rates = Rates(matrix=None, other=1e-3, known=kept + blocks)
        phases = scene_encoder.phases(epochs, BATCH)
        return train_phases(
            settings,
            reasoner,
            PAIRS,
            loss,
            lambda: watch(reasoner, words, watched),
            phases,
            rates,
        )

    epochs = either(settings.epochs, EPOCHS)
    first = replace(settings, out=settings.out / "finding").begun()
    run(first, min(FINDING_EPOCHS, epochs), weigh=False)
    last = run(settings, epochs, weigh=True)
    folder = settings.out / FOLDER
    reasoner.model.half().save_pretrained(folder)
    reasoner.model.float()
    size = {"shortest_edge": scenes.SIDE}
    images = image_processor(ViltImageProcessor, scenes.SIDE, size=size)
    ViltProcessor(images, words).save_pretrained(folder)
    return last
