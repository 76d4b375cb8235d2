"""What a kind of model is trained for: the loss of a batch, without the method's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.errors import BenchError, Unsupported
from bench.models.loaded import Loaded
from bench.training.contrastive import MAX_LOGIT_SCALE, contrastive_loss, gathered
from bench.training.pairs import READING, Batch

BatchLoss = Callable[[Batch], Tensor]


def task_loss(loaded: Loaded, processes: Any) -> BatchLoss:
    """Return the loss for a model's kind; `processes` is an accelerate.Accelerator.

    Raises:
        Unsupported: the model is of another kind.
        BenchError: the files that say how it reads are missing.
    """
    if loaded.kind == "classifier":
        return _cross_entropy(loaded)
    if loaded.kind in READING:
        return answers(loaded)
    if not hasattr(loaded.model, "visual_projection"):
        raise Unsupported(
            f"{loaded.name} is neither a CLIP nor of the kinds classifier, {', '.join(READING)}: "
            "only these can be fine-tuned so far"
        )
    return _contrastive(loaded, processes)


def _cross_entropy(loaded: Loaded) -> BatchLoss:
    def loss(batch: Batch) -> Tensor:
        with torch.autocast(loaded.device.type, torch.bfloat16):
            out = loaded.model(**{loaded.image_argument: batch.images.to(loaded.device)})
        logits = getattr(out, "logits", out).float()
        return nn.functional.cross_entropy(logits, batch.own.to(loaded.device))

    return loss


def _contrastive(loaded: Loaded, processes: Any) -> BatchLoss:
    model: Any = loaded.model
    device = loaded.device
    tokenizer = _tokenizer(loaded)

    def loss(batch: Batch) -> Tensor:
        words = {key: value.to(device) for key, value in tokenizer(batch.texts).items()}
        if model.logit_scale.requires_grad:
            with torch.no_grad():
                model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        with torch.autocast(device.type, torch.bfloat16):
            out = model(pixel_values=batch.images.to(device), **words)
        image = gathered(out.image_embeds.float(), processes)
        own = gathered(batch.own.to(device), processes)
        return contrastive_loss(image, out.text_embeds.float(), model.logit_scale.exp(), own)

    return loss


def answers(loaded: Loaded) -> BatchLoss:
    """Return the model's own loss of the right answers."""
    if loaded.teach is None:
        raise BenchError(f"{loaded.name} has no processor: put its files beside its weights")
    teach = loaded.teach

    def loss(batch: Batch) -> Tensor:
        shown = [list(pictures) for pictures in batch.pictures]
        inputs = loaded.placed(teach(shown, batch.texts, list(batch.answers)))
        with torch.autocast("cuda", torch.bfloat16, enabled=loaded.device.type == "cuda"):
            value: Tensor = loaded.model(**inputs).loss
        return value

    return loss


def _tokenizer(loaded: Loaded) -> Callable[[list[str]], dict[str, Tensor]]:
    """Return the model's tokenizer, once it has shown that it pads texts to one length."""
    try:
        if loaded.tokenizer is not None and loaded.tokenizer(["one", "one two"]):
            return loaded.tokenizer
    except ValueError:
        pass  # transformers makes up an empty one where its files are missing
    raise BenchError(f"{loaded.name} has no tokenizer: put its files beside its weights")
