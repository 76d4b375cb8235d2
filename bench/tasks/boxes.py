"""How language models write a box, how they are asked for one, and how well two boxes agree.

Every family has a convention of its own, and the numbers alone do not tell which: [12, 40, 80, 90]
may be pixels or thousandths. It follows from the model's family, or is asked for.

Sources: the cookbooks of Qwen2.5-VL and Qwen3-VL; the paper of Qwen2-VL; evaluate_grounding.py of
InternVL; LLaVA-1.5's instructions from RefCOCO; the paper of PaliGemma.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from bench.core.errors import BenchError, shown
from bench.models.view import pixels_seen, view

Box = tuple[float, float, float, float]  # left, top, right, bottom

DESCRIBES = "Please provide the bounding box coordinate of the region this sentence describes: {}"
LOCATE = "Locate {}, output its bbox coordinates using JSON format."
DETECT = "detect {}"

_NUMBER = r"\s*(-?\d+(?:\.\d+)?|-?\.\d+)\s*"
# [1, 2, 3, 4] alone or as "bbox_2d", [[1, 2, 3, 4]], (1, 2), (3, 4), and <box> around any of them.
_WRITTEN = re.compile(
    rf"[\[(]{_NUMBER},{_NUMBER}(?:\)\s*,?\s*\(|\]\s*,?\s*\[|,){_NUMBER},{_NUMBER}[\])]"
)
_TOKENS = re.compile(r"<loc(\d{4})>" * 4)

PIXELS, THOUSAND, SHARE, LOC = "pixels", "thousand", "share", "loc"
SIDES = {THOUSAND: 1000.0, SHARE: 1.0, LOC: 1024.0}  # of the image, in this unit


@dataclass(frozen=True)
class Convention:
    """How boxes are written.

    Attributes:
        unit: "pixels" of the image as the model sees it, "thousand" for thousandths of it, "share"
            for numbers from 0 to 1, "loc" for PaliGemma's tokens, 1024 to an image, top first.
        prompt: what is asked, with `{}` for the expression.
    """

    unit: str
    prompt: str


USUAL = {
    PIXELS: Convention(PIXELS, LOCATE),
    THOUSAND: Convention(THOUSAND, DESCRIBES),
    SHARE: Convention(SHARE, DESCRIBES),
    LOC: Convention(LOC, DETECT),
}
OF_FAMILIES = {
    "qwen2_vl": USUAL[THOUSAND],
    "qwen2_5_vl": USUAL[PIXELS],
    "qwen3_vl": Convention(THOUSAND, LOCATE),
    "internvl": Convention(THOUSAND, DESCRIBES.replace("{}", "<ref>{}</ref>")),
    "llava": USUAL[SHARE],
    "paligemma": USUAL[LOC],
}


def convention(loaded: Any, unit: str | None, prompt: str | None, form: str) -> Convention:
    """Return how a model writes boxes: as the user says, else as its family does.

    Args:
        loaded: a multimodal language model.
        unit: of `Convention`; None: the family's.
        prompt: None: the convention's.
        form: of the task's names, for the message.

    Raises:
        BenchError: nobody says how.
    """
    family = getattr(getattr(loaded.model, "config", None), "model_type", "of no known family")
    known = OF_FAMILIES.get(family)
    if unit is not None and (known is None or known.unit != unit):
        known = USUAL[unit]
    if known is None:
        raise BenchError(
            f"nothing says how {loaded.name} ({family}) writes boxes: add ?boxes= with one of "
            f"{', '.join(USUAL)} to {form}"
        )
    return known if prompt is None else Convention(known.unit, prompt)


def chosen(unit: str | None, prompt: str | None, form: str) -> None:
    """Raise BenchError where the options `boxes` and `prompt` of a task's name mean nothing."""
    if unit is not None and unit not in USUAL:
        raise BenchError(
            f"option boxes='{shown(unit)}' in {form} must be one of {', '.join(USUAL)}"
        )
    if prompt is not None and "{}" not in prompt:
        raise BenchError(f"option prompt='{shown(prompt)}' in {form} lacks {{}} for the expression")


def read(answer: str, unit: str) -> Box | None:
    """Return the first box in an answer, in its own unit; None where there is none."""
    match = (_TOKENS if unit == LOC else _WRITTEN).search(answer)
    if match is None:
        return None
    one, two, three, four = map(float, match.groups())
    return (two, one, four, three) if unit == LOC else (one, two, three, four)


def located(answer: str, unit: str, processor: Any, picture: Any) -> Box | None:
    """Return the first box in an answer in the picture's pixels; None where there is none.

    Args:
        answer: of a model.
        unit: see `Convention`.
        processor: the model's image processor, which says what it sees of the picture.
        picture: PIL, RGB.
    """
    box = read(answer, unit)
    if box is None:
        return None
    seen = view(processor, picture.size)
    sides = pixels_seen(processor, picture) if unit == PIXELS else (SIDES[unit],) * 2
    across, down = seen.width / sides[0], seen.height / sides[1]
    left, top, right, bottom = box
    return (
        seen.left + left * across,
        seen.top + top * down,
        seen.left + right * across,
        seen.top + bottom * down,
    )


def iou(ours: Box, theirs: Box) -> float:
    """Return the intersection of two boxes over their union; 0 where a box has no inside."""
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (ours, theirs)]
    if any(box[2] <= box[0] or box[3] <= box[1] for box in (ours, theirs)):
        return 0.0
    width = min(ours[2], theirs[2]) - max(ours[0], theirs[0])
    height = min(ours[3], theirs[3]) - max(ours[1], theirs[1])
    both = max(width, 0.0) * max(height, 0.0)
    return both / (sum(areas) - both)
