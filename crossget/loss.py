"""The alignment loss (CrossGET, §3.1): cross tokens of the two modalities shall be alike.

Shape suffixes: L layers, B batch, C channels of a tower, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from bench.core import Unsupported
from crossget.cross_tokens import CrossTokens


def match_layers(x_LBE: Tensor, depth: int) -> Tensor:
    """Repeat layers to `depth` as evenly as integers allow (nearest interpolation)."""
    layers = torch.arange(depth, device=x_LBE.device) * len(x_LBE) // depth
    return x_LBE[layers]


def spread_layers(x_LBE: Tensor, depth: int) -> Tensor:
    """As `match_layers`, by the LLaVA code's rounding: layer i ends at floor((i+1) depth / L)."""
    layers = (torch.arange(1, depth + 1, device=x_LBE.device) * len(x_LBE) - 1) // depth
    return x_LBE[layers]


def alignment_loss(
    image_LBE: Tensor,
    text_LBE: Tensor,
    match: Callable[[Tensor, int], Tensor] = match_layers,
) -> Tensor:
    """Jensen-Shannon divergence of the softmaxes, mean over layers and batch.

    Args:
        image_LBE: projected cross tokens of one modality, logits over the embedding.
        text_LBE: of the other; the shallower of the two is repeated to the depth of the deeper.
        match: how it is repeated.
    """
    depth = max(len(image_LBE), len(text_LBE))
    both = [match(x, depth).flatten(0, 1) for x in (image_LBE, text_LBE)]
    mean = (both[0].softmax(-1) + both[1].softmax(-1)) / 2
    parts = [F.kl_div(x.log_softmax(-1), mean, reduction="batchmean") for x in both]
    return (parts[0] + parts[1]) / 2


def project(values_LBC: Tensor, norm: Any, projection: Any) -> Tensor:
    """The tower's own norm and projection, both detached: (L,B,C) -> (L,B,E).

    `projection` None leaves the width as it is (SigLIP's image tower has no linear projection).
    """
    x = F.layer_norm(
        values_LBC, norm.normalized_shape, norm.weight.detach(), norm.bias.detach(), norm.eps
    )
    return x if projection is None else _fixed(projection, x)


def _fixed(linear: Any, x: Tensor) -> Tensor:
    """A linear layer, adapters included, that no gradient reaches."""
    fixed = {name: parameter.detach() for name, parameter in linear.named_parameters()}
    return functional_call(linear, fixed, (x,))  # type: ignore[no-any-return]


def clip_alignment_loss(model: Any, cross: CrossTokens, text_of_B: Tensor | None = None) -> Tensor:
    """The loss of a transformers CLIP or SigLIP after a forward pass in training.

    `text_of_B` is the row of each image's text where a batch has other texts than one an image.

    CLIP: image side through `pre_layrnorm` and the visual projection, text side through the final
    norm and the text projection, as the reference. SigLIP (not in the reference): image side
    through the post norm, text side through final norm and head.
    """
    vision, text = model.vision_model, model.text_model
    if hasattr(model, "visual_projection"):
        image_side, text_side = (
            (vision.pre_layrnorm, model.visual_projection),
            model.text_projection,
        )
    else:
        image_side, text_side = (vision.post_layernorm, None), text.head
    text_values = cross.stacked("text")
    if text_of_B is not None:
        text_values = text_values[:, text_of_B]
    return alignment_loss(
        project(cross.stacked("vision"), *image_side),
        project(text_values, text.final_layer_norm, text_side),
    )


def blip_alignment_loss(model: Any, cross: CrossTokens) -> Tensor:
    """The loss of a transformers BLIP after a forward pass in training (not in the authors' code).

    The text encoder reads the image, so its cross tokens are those of the dependent modality. The
    image side goes through its final norm; text leaves each block normed. Where the model has
    projections into a common space both go through them, detached; else they share the width.
    """
    image = project(cross.stacked("vision"), model.vision_model.post_layernorm, None)
    text = cross.stacked("text")
    if hasattr(model, "vision_proj"):
        image, text = _fixed(model.vision_proj, image), _fixed(model.text_proj, text)
    if image.shape[1] != text.shape[1]:  # several texts an image
        image = image.repeat_interleave(text.shape[1] // image.shape[1], 1)
    return alignment_loss(image, text)


def llava_alignment_loss(model: Any, cross: CrossTokens) -> Tensor:
    """The loss of a transformers LLaVA after a forward pass in training.

    Vision cross tokens go through the projector (detached) and meet the language model's in its
    own width, as the reference; there its weight is 0.001 (7B) and 0.1 (13B). Of several images a
    prompt they meet by their mean.

    Raises:
        Unsupported: the model has another projector.
    """
    projector = getattr(getattr(model, "model", None), "multi_modal_projector", None)
    if projector is None:
        raise Unsupported(
            f"CrossGET's alignment loss is defined for a LLaVA's projector, which a "
            f"{type(model).__name__} has not: train it with another method"
        )
    image, text = cross.stacked("vision"), cross.stacked("language")
    image = _fixed(projector.linear_2, projector.act(_fixed(projector.linear_1, image)))
    if image.shape[1] != text.shape[1]:
        image = image.unflatten(1, (text.shape[1], -1)).mean(2)
    return alignment_loss(image, text, spread_layers)


def frozen_text_alignment_loss(model: Any, cross: CrossTokens, text_of_B: Tensor) -> Tensor:
    """The loss of an image encoder beside texts that were encoded beforehand (not in the paper).

    There is no text tower to learn cross tokens, so an image's meet the features of its own text,
    of the same length; the head that reads the class tokens of several blocks reads the cross token
    in the place of each.
    """
    head = model.head
    blocks = head.in_features // model.embed_dim
    image = project(cross.stacked("vision"), model.norm, None)
    image = _fixed(head, image.repeat(1, 1, blocks))
    text = model.text_features[text_of_B].expand_as(image)
    return alignment_loss(image, text * image.detach().norm(dim=-1, keepdim=True))


def loss_in(model: Any, cross: CrossTokens, text_of_B: Tensor | None = None) -> Tensor | None:
    """The loss of a model, by where cross tokens were seen in it; None with no text to meet."""
    if "language" in cross.values:
        return llava_alignment_loss(model, cross)
    if hasattr(model, "text_features") and text_of_B is not None:
        return frozen_text_alignment_loss(model, cross, text_of_B)
    if "text" not in cross.values:
        return None
    if hasattr(model, "text_encoder"):
        return blip_alignment_loss(model, cross)
    return clip_alignment_loss(model, cross, text_of_B)
