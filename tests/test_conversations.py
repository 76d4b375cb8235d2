"""Several images in one prompt, and turns of a conversation: right, or refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import vlm_models as tiny
from test_vlm import WAYS
from torch import Tensor

import bench
from bench.core.errors import Unsupported
from bench.measure.generation import cache_name

# BLIP-2 sees one image, and the window of this small Gemma 3 holds one.
FAMILIES = [name for name in tiny.MODELS if not name.startswith(("BLIP-2", "Gemma 3"))]


def conversations(batch_of: Any) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Two prompts, of which the first has two turns with an image each: as a batch, and alone."""
    batch = batch_of(3)
    one, two, other = (tiny.alone(batch, i) for i in range(3))
    words = [name for name, part in batch.items() if part.shape == batch["input_ids"].shape]
    images = [name for name in batch if name not in words]
    both = {name: torch.cat([one[name], two[name]], 1) for name in words}
    both |= {name: torch.cat([one[name], two[name]]) for name in images}
    longest = max(both["input_ids"].shape[1], other["input_ids"].shape[1])
    padded = {
        name: torch.cat(
            [
                torch.nn.functional.pad(part, (longest - part.shape[1], 0), value=0)
                for part in (both[name], other[name])
            ]
        )
        for name in words
    }
    return {**{name: batch[name] for name in images}, **padded}, [both, other]


@pytest.mark.parametrize("way", ["ahead", "first and later", "projector", "tome"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_turns_with_an_image_each_are_answered_as_alone(family: str, way: str) -> None:
    make, batch_of = tiny.MODELS[family]
    model, (batch, alone) = make(), conversations(batch_of)
    method, given = WAYS[way]
    plain = tiny.answers(model, batch, 3)
    with torch.no_grad(), bench.reduced(model, method, **given):
        together = tiny.answers(model, batch, 3)
        each = torch.cat([tiny.answers(model, one, 3) for one in alone])
    assert torch.equal(together, each)
    assert torch.equal(tiny.answers(model, batch, 3), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_turn_on_top_of_a_reduced_cache_is_refused(family: str) -> None:
    make, batch_of = tiny.MODELS[family]
    model, batch = make(), batch_of(1)
    method, given = WAYS["ahead"]
    with torch.no_grad(), bench.reduced(model, method, **given):
        said = model(**batch, use_cache=True)
        name = cache_name(model)
        more = {"input_ids": torch.tensor([[5, 6, 7]]), name: said[name]}
        with pytest.raises(Unsupported, match="several tokens after a reduced prompt: give all as"):
            model(**more)
