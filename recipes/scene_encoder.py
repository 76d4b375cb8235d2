"""The image encoder that the small BLIPs and ViLT begin with: it names what each patch depicts.

It is made of the first blocks of `llava-emoji`'s, and trained for a few minutes. Questions and
captions alone teach a small encoder from scratch too slowly what there is to see. That a word and
what it names are the same thing takes them longest: so words begin as the vectors by which patches
are named (`words`), and attention from the one to the other as one that looks for what is alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.models import catalogue
from bench.tasks import scenes
from recipes.augment import normalise
from recipes.phases import Phase, Rates, Scratch, train_phases

WIDTH, HEADS, BLOCKS, PATCH = 128, 4, 6, 4
SCENES, BATCH = 8192, 16  # a "pass", and scenes a step
EPOCHS = 0.4
GROUND = 0.1  # weight of a patch that depicts nothing
HALVES = ("top", "bottom", "left", "right")
WORD_SPREAD = 0.1  # standard deviation of a word's channels
ALIKE = 1.5  # gain of queries and keys that look for what is alike
FOLDER = "tower"  # within that of what is trained


def shape() -> dict[str, Any]:
    """The configuration of a BlipVisionModel."""
    return {
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": BLOCKS,
        "hidden_act": "quick_gelu",
        "image_size": scenes.SIDE,
        "patch_size": PATCH,
    }


class Tower(nn.Module):
    """The encoder, and the heads that name what patches depict and in which half they are."""

    def __init__(self) -> None:
        """Build them, untrained."""
        super().__init__()
        from transformers import BlipVisionConfig, BlipVisionModel

        self.model = BlipVisionModel(BlipVisionConfig(**shape()))
        self.named = head()
        self.placed = nn.Linear(WIDTH, len(HALVES))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B,3,H,W) -> (B,P,names) and (B,P,2,2) logits: of top and bottom, of left and right."""
        tokens = self.model(pixel_values=pixels).last_hidden_state[:, 1:]
        return self.named(tokens), self.placed(tokens).unflatten(-1, (2, 2))

    def words(self) -> dict[str, Tensor]:
        """The vectors (C,) by which patches are named, one a word, all of the same length."""
        things = self.named.weight[1:]
        vectors = torch.cat([things - things.mean(0), self.placed.weight]).detach()
        vectors = F.normalize(vectors, dim=-1) * WORD_SPREAD * math.sqrt(WIDTH)
        return dict(zip([*scenes.NAMES.values(), *HALVES], vectors, strict=True))


def head() -> nn.Linear:
    """Channels of a patch -> what it depicts."""
    return nn.Linear(WIDTH, 1 + len(scenes.NAMES))


def naming(logits: Tensor, depicted: Tensor) -> Tensor:
    """Cross entropy of what patches depict: (...,P,names), (...,P)."""
    weight = torch.ones(logits.shape[-1], device=logits.device)
    weight[0] = GROUND
    return F.cross_entropy(logits.flatten(0, -2), depicted.flatten(), weight=weight)


def placing(logits: Tensor) -> Tensor:
    """Cross entropy of the halves of the image that patches (B,P,2,2) are in."""
    side = scenes.SIDE // PATCH
    later = (torch.arange(side, device=logits.device) >= side // 2).long()
    halves = torch.stack([later.repeat_interleave(side), later.repeat(side)], -1)
    return F.cross_entropy(logits.flatten(0, -2), halves.expand(len(logits), -1, -1).flatten())


@torch.no_grad()
def look_for_like(query: nn.Linear, key: nn.Linear, value: nn.Linear, out: nn.Linear) -> None:
    """Begin an attention as one that finds what resembles a token, and hands it on as it is.

    Queries and keys are the same random map, the output the transpose of the values' (Trockman &
    Kolter, ICML 2023: trained attention comes to look like this).
    """
    nn.init.normal_(query.weight, std=ALIKE / math.sqrt(WIDTH))
    nn.init.normal_(value.weight, std=1 / math.sqrt(WIDTH))
    key.weight.copy_(query.weight)
    out.weight.copy_(value.weight.T)


def known(logits: Tensor, depicted: Tensor) -> float:
    """Share of the things' patches that are named right, in percent."""
    return 100 * float((logits.argmax(-1) == depicted)[depicted > 0].float().mean())


def depicted(objects: Mapping[int, scenes.Placed]) -> Tensor:
    """What each patch (P,) of a scene depicts."""
    return torch.from_numpy(scenes.depicted(objects, scenes.SIDE // PATCH).flatten())


def compose(seed: int) -> tuple[Tensor, Tensor]:
    """Pixels (B,3,H,W) of new scenes, and what their patches depict (B,P)."""
    rng = np.random.default_rng([seed, 3])
    made = [scenes.compose(rng) for _ in range(BATCH)]
    pixels = normalise(np.stack([image for image, _ in made]))
    return pixels, torch.stack([depicted(objects) for _, objects in made])


def phases(epochs: float, batch: int) -> list[Phase]:
    """At one resolution: most of it at the full rate, the rest at a falling one."""
    return [Phase(scenes.SIDE, part * epochs, batch) for part in (0.7, 0.3)]


def trained(settings: Scratch) -> Tower:
    """Return the encoder, trained in a folder of its own below that of `settings`; resumes."""
    settings = replace(settings, out=settings.out / FOLDER).begun()
    tower = Tower()
    llava: Any = catalogue.load("embedded:llava-emoji").model
    from_clip(llava.model.vision_tower, tower.model)
    tower.to(settings.device)

    def loss(indices: Tensor, pixels: int, rng: torch.Generator) -> Tensor:
        seed = int(torch.randint(1000, 2**31, (1,), generator=rng))  # smaller ones are for tests
        shown, right = compose(seed)
        named, places = tower(shown)
        return naming(named, right) + placing(places)

    @torch.inference_mode()
    def watch() -> dict[str, float]:
        tower.eval()
        shown, right = compose(1)
        return {"named": known(tower(shown)[0], right)}

    rates = Rates(matrix=None, other=1e-3)
    train_phases(settings, tower, SCENES, loss, watch, phases(EPOCHS, BATCH), rates)
    return tower


def from_clip(clip: Any, blip: Any) -> None:
    """Give a BLIP's encoder the first blocks of a CLIP's.

    CLIP has a norm ahead of its blocks, BLIP has none: its shift and scale go into the embeddings,
    and the spread of a patch, which differs by 15 % from patch to patch, is taken for its mean.
    """
    clip = getattr(clip, "vision_model", clip)
    theirs, ours, norm = clip.embeddings, blip.embeddings, clip.pre_layrnorm
    with torch.no_grad():
        patches = theirs(compose(0)[0])[:, 1:]
        scale = norm.weight / patches.std(-1, unbiased=False).mean()
        kernel, places = theirs.patch_embedding.weight, theirs.position_embedding.weight
        ours.patch_embedding.weight.copy_((kernel - kernel.mean(0)) * scale[:, None, None, None])
        ours.patch_embedding.bias.zero_()
        ours.position_embedding.copy_((places - places.mean(1, keepdim=True)) * scale + norm.bias)
        first = norm(theirs.class_embedding + places[0])
        ours.class_embedding.copy_(first - ours.position_embedding[0, 0])
        for source, target in zip(clip.encoder.layers, blip.encoder.layers, strict=False):
            attention = source.self_attn
            parts = (attention.q_proj, attention.k_proj, attention.v_proj)
            target.self_attn.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
            target.self_attn.qkv.bias.copy_(torch.cat([part.bias for part in parts]))
            target.self_attn.projection.load_state_dict(attention.out_proj.state_dict())
            for name in ("layer_norm1", "layer_norm2", "mlp"):
                getattr(target, name).load_state_dict(getattr(source, name).state_dict())


def into_vilt(tower: Tower, vilt: Any) -> None:
    """Give a ViLT's first blocks the weights: both norm first, one has its three matrices apart."""
    theirs, ours = vilt.embeddings, tower.model.embeddings
    with torch.no_grad():
        theirs.cls_token.copy_(ours.class_embedding)
        theirs.position_embeddings.copy_(ours.position_embedding)
        for target, source in _same(vilt, tower.model):
            target.weight.copy_(source.weight)
            target.bias.copy_(source.bias)
        for target, source in zip(vilt.encoder.layer, tower.model.encoder.layers, strict=False):
            attention = target.attention.attention
            parts = (attention.query, attention.key, attention.value)
            qkv = source.self_attn.qkv
            weights, biases = qkv.weight.chunk(3), qkv.bias.chunk(3)
            for part, weight, bias in zip(parts, weights, biases, strict=True):
                part.weight.copy_(weight)
                part.bias.copy_(bias)


def _same(vilt: Any, blip: Any) -> list[tuple[Any, Any]]:
    pairs = [
        (vilt.embeddings.patch_embeddings.projection, blip.embeddings.patch_embedding),
        (vilt.layernorm, blip.post_layernorm),
    ]
    for target, source in zip(vilt.encoder.layer, blip.encoder.layers, strict=False):
        pairs += [
            (target.layernorm_before, source.layer_norm1),
            (target.attention.output.dense, source.self_attn.projection),
            (target.layernorm_after, source.layer_norm2),
            (target.intermediate.dense, source.mlp.fc1),
            (target.output.dense, source.mlp.fc2),
        ]
    return pairs
