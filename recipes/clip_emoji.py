"""Train `clip-emoji`: a small Hugging Face CLIPModel on emoji drawings and captions.

Five design houses train it, a sixth chooses nothing but is watched, a seventh is the test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.assets.embedded import TEXT_TOKENS, drawings
from bench.training.losses import MAX_LOGIT_SCALE, autocast, contrastive_loss
from recipes.augment import augment, normalise
from recipes.phases import Phase, Rates, Scratch, either, train_phases
from recipes.text import build_tokenizer

LOW_RESOLUTION, FULL_RESOLUTION = 32, 64
LOW_EPOCHS, FULL_EPOCHS = 13.0, 2.0
EXTRA_TEXTS_LOW, EXTRA_TEXTS_FULL = 0, 96


def build(vocabulary: int) -> nn.Module:
    """Return an untrained `clip-emoji`: 257 image tokens, at most 24 text tokens."""
    from transformers import CLIPConfig, CLIPModel

    shared = {"projection_dim": 128}
    vision = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "image_size": FULL_RESOLUTION,
        "patch_size": 4,
    }
    text = {
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "vocab_size": vocabulary,
        "max_position_embeddings": TEXT_TOKENS,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    config = CLIPConfig(
        vision_config={**vision, **shared}, text_config={**text, **shared}, **shared
    )
    model: nn.Module = CLIPModel(config)
    return model


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors of images and texts, (N,D) each; row i of one belongs to row i of the other."""

    image: Tensor
    text: Tensor


def recalls(embeddings: Embeddings) -> dict[str, float]:
    """Return R@1/5/10 in percent, image to text and text to image."""
    similar = embeddings.image @ embeddings.text.T
    matching = similar.diagonal()
    result: dict[str, float] = {}
    for name, other in (
        ("i2t", (similar > matching[:, None]).sum(1)),
        ("t2i", (similar > matching[None, :]).sum(0)),
    ):
        result |= {f"{name}_r{k}": 100 * float((other < k).float().mean()) for k in (1, 5, 10)}
    return result


@torch.inference_mode()
def embed(
    model: nn.Module, tokenizer: Any, split: drawings.Drawings, batch: int = 64
) -> Embeddings:
    """Embed each drawing of a one-house split and its concept's caption."""
    model.eval()
    device = next(model.parameters()).device
    images, texts = [], []
    for start in range(0, len(split.images), batch):
        stop = start + batch
        captions = [split.concepts[i].text for i in split.concept[start:stop]]
        tokens = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        out = model(
            pixel_values=normalise(split.images[start:stop]).to(device),
            input_ids=tokens["input_ids"].to(device),
            attention_mask=tokens["attention_mask"].to(device),
        )
        images.append(out.image_embeds.float().cpu())
        texts.append(out.text_embeds.float().cpu())
    return Embeddings(torch.cat(images), torch.cat(texts))


def _loss_function(
    model: Any, tokenizer: Any, train: drawings.Drawings, device: str
) -> Callable[[Tensor, int, torch.Generator], Tensor]:
    images, concept = torch.from_numpy(train.images), torch.from_numpy(train.concept)

    def loss(indices: Tensor, pixels: int, rng: torch.Generator) -> Tensor:
        full = pixels == FULL_RESOLUTION
        others = EXTRA_TEXTS_FULL if full else EXTRA_TEXTS_LOW
        shown, rows = drawings.choose_texts(concept[indices], len(train.concepts), others, rng)
        texts = [drawings.drop_keywords(train.concepts[i].text, rng) for i in shown.tolist()]
        tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(device)
        batch, rows = augment(images[indices], pixels, rng).to(device), rows.to(device)
        with torch.no_grad():
            model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        with autocast(device):
            out = model(
                pixel_values=batch,
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"],
                interpolate_pos_encoding=not full,
            )
        a, b, scale = out.image_embeds.float(), out.text_embeds.float(), model.logit_scale.exp()
        return contrastive_loss(a, b, scale, rows)

    return loss


def train(settings: Scratch) -> dict[str, float]:
    """Train, write `clip_emoji/` in the settings' folder, and return recalls on the test house."""
    settings = settings.begun()
    train_set = drawings.emoji("train", settings.data_dir)
    watched = drawings.emoji("validation", settings.data_dir)
    tokenizer = build_tokenizer([c.text for c in train_set.concepts], TEXT_TOKENS)
    model: Any = build(len(tokenizer)).to(settings.device)
    # torch's fused attention is slow backwards in bf16 on a CPU.
    model.set_attn_implementation("eager")
    settings.compile_blocks(model.vision_model.encoder.layers)
    low = either(settings.low_epochs, LOW_EPOCHS)
    full = either(settings.epochs, FULL_EPOCHS)
    phases = [Phase(LOW_RESOLUTION, low, 64)] if low else []
    watched_scores = train_phases(
        settings,
        model,
        len(train_set.images),
        _loss_function(model, tokenizer, train_set, settings.device),
        lambda: recalls(embed(model, tokenizer, watched)),
        [*phases, Phase(FULL_RESOLUTION, full, 32)],
        Rates(),
        evaluate_every=1000,
    )
    with torch.compiler.set_stance("force_eager"):
        result = recalls(embed(model, tokenizer, drawings.emoji("test", settings.data_dir)))
    model.set_attn_implementation("sdpa")
    folder = settings.out / "clip_emoji"
    model.half().save_pretrained(folder)
    model.float()
    tokenizer.save_pretrained(folder)
    return {**result, **{f"validation_{name}": value for name, value in watched_scores.items()}}
