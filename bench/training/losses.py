"""What a kind of model is trained for: the loss of a batch, without the method's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.errors import BenchError, Unsupported
from bench.models.image_tower import ImageTower
from bench.models.loaded import Classifier, Loaded, Reader, TwoTower
from bench.training.pairs import Batch

MAX_LOGIT_SCALE = 4.6052  # log 100, as in CLIP
BatchLoss = Callable[[Batch], Tensor]


def takes_bfloat16(device: torch.device | str, reads: bool = False) -> bool:
    """Whether losses are computed in bfloat16 on a device: a GPU, or a CPU with AVX-512.

    Other CPUs emulate it, which is far slower than float32. A model that reads (`reads`) stays in
    float32 on every CPU.
    """
    if torch.device(device).type != "cpu":
        return True
    return not reads and "AVX512" in torch.backends.cpu.get_cpu_capability()


def autocast(device: torch.device | str, reads: bool = False) -> torch.autocast:
    """Return the context in which a loss is computed; the arguments are `takes_bfloat16`'s."""
    enabled = takes_bfloat16(device, reads)
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled)


def precision(loaded: Loaded) -> str:
    """Return in words what the loss of a model is computed in."""
    half = takes_bfloat16(loaded.device, isinstance(loaded, Reader))
    return "bfloat16 autocast" if half else "float32"


def task_loss(loaded: Loaded, processes: Any) -> BatchLoss:
    """Return the loss for a model's kind; `processes` is an accelerate.Accelerator.

    Raises:
        Unsupported: the model is of another kind.
        BenchError: the files that say how it reads are missing.
    """
    if isinstance(loaded, Classifier):
        return _cross_entropy(loaded)
    if isinstance(loaded, Reader):
        return answers(loaded)
    if isinstance(loaded, ImageTower):
        return _to_texts(loaded, processes)
    if not isinstance(loaded, TwoTower) or not hasattr(loaded.model, "visual_projection"):
        raise Unsupported(
            f"{loaded.name} is neither a CLIP nor of the kinds classifier, multimodal, answerer, "
            "captioner, pair-classifier: only these can be fine-tuned so far"
        )
    return _contrastive(loaded, processes)


def _cross_entropy(loaded: Classifier) -> BatchLoss:
    def loss(batch: Batch) -> Tensor:
        with autocast(loaded.device):
            logits = loaded.logits(batch.images.to(loaded.device))
        return F.cross_entropy(logits, batch.target.to(loaded.device))

    return loss


def _contrastive(loaded: TwoTower, processes: Any) -> BatchLoss:
    model: Any = loaded.model
    device = loaded.device
    tokenizer = _tokenizer(loaded)

    def loss(batch: Batch) -> Tensor:
        words = {key: value.to(device) for key, value in tokenizer(batch.texts).items()}
        if model.logit_scale.requires_grad:
            with torch.no_grad():
                model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        with autocast(device):
            out = model(pixel_values=batch.images.to(device), **words)
        image = gathered(out.image_embeds.float(), processes)
        target = gathered(batch.target.to(device), processes)
        return contrastive_loss(image, out.text_embeds.float(), model.logit_scale.exp(), target)

    return loss


def _to_texts(loaded: ImageTower, processes: Any) -> BatchLoss:
    """Return the contrastive loss against texts that were encoded beforehand, and stay."""
    tokenizer = loaded.tokenizer
    assert tokenizer is not None

    def loss(batch: Batch) -> Tensor:
        text = loaded.encode_texts(tokenizer(batch.texts))
        with autocast(loaded.device):
            image = loaded.encode_images(batch.images.to(loaded.device))
        image = gathered(image, processes)
        target = gathered(batch.target.to(loaded.device), processes)
        return contrastive_loss(image, text, torch.tensor(MAX_LOGIT_SCALE).exp(), target)

    return loss


def answers(loaded: Reader) -> BatchLoss:
    """Return the model's own loss of the right answers."""
    loaded.require_processor()

    def loss(batch: Batch) -> Tensor:
        inputs = loaded.placed(loaded.teach(batch.pictures, batch.texts, batch.answers))
        with autocast(loaded.device, reads=True):
            value: Tensor = loaded.model(**inputs).loss
        return value

    return loss


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, target: Tensor) -> Tensor:
    """Return the symmetric contrastive loss of images (B,D) and texts (U,D).

    `target` (B,) is the row of each image's text. Texts that belong to no image are negatives of
    the images only; two drawings of one concept share its text as equal positives.
    """
    scores = scale * image @ text.T
    matches = F.one_hot(target, len(text)).to(scores.dtype)
    asked = matches.sum(0) > 0
    shares = (matches / matches.sum(0).clamp_min(1)).T[asked]
    from_image = F.cross_entropy(scores, target, label_smoothing=0.05)
    return (from_image + F.cross_entropy(scores.T[asked], shares, label_smoothing=0.05)) / 2


def gathered(x: Tensor, processes: Any) -> Tensor:
    """Return the rows (B/P,D) of all P processes, in order; gradients reach this process's rows.

    `processes` is an accelerate.Accelerator. It averages gradients over the processes, where those
    of rows that one process alone has must count fully: so they are multiplied by P.
    """
    if processes.num_processes == 1:
        return x
    rows = list(processes.gather(x.detach()).chunk(processes.num_processes))
    if x.requires_grad:
        x = x.view_as(x)
        x.register_hook(lambda gradient: gradient * processes.num_processes)
    rows[processes.process_index] = x
    return torch.cat(rows)


def _tokenizer(loaded: TwoTower) -> Callable[[list[str]], Mapping[str, Tensor]]:
    """Return the model's tokenizer, once it has shown that it pads texts to one length."""
    try:
        if loaded.tokenizer is not None and loaded.tokenizer(["one", "one two"]):
            return loaded.tokenizer
    except ValueError:
        pass  # transformers makes up an empty one where its files are missing
    raise BenchError(f"{loaded.name} has no tokenizer: put its files beside its weights")
