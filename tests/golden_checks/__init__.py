"""Checks against the authors' outputs, one function `check_NAME` a file of golden/methods."""

from __future__ import annotations

from collections.abc import Callable

from golden_checks import before_language, image_blocks, in_language
from golden_checks.cases import Case

CHECKS: dict[str, Callable[[Case], None]] = {
    name.removeprefix("check_"): check
    for place in (image_blocks, before_language, in_language)
    for name, check in vars(place).items()
    if name.startswith("check_")
}
