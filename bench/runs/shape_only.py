"""Models by their shape alone, on PyTorch's meta device, where tensors have no values."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import Any

import torch

from bench.core import Learner, registry
from bench.core.errors import BenchError
from bench.core.parameters import own
from bench.engine import reduce
from bench.engine.tracing import trace
from bench.models import catalogue
from bench.models.loaded import Loaded

DTYPE = "bfloat16"


def on_meta(name: str, dtype: str = DTYPE) -> Loaded:
    """Return a model without values, by its shape."""
    with torch.device("meta"):
        return catalogue.load(name, random_weights=True, device="meta", dtype=dtype)


class Requests:
    """Checks what is asked of methods in one model, ahead of any measurement."""

    def __init__(self, loaded: Loaded, frames: int = 0) -> None:
        """Keep a model as `on_meta` makes it; with `frames` it is shown a video of so many."""
        self.loaded, self.frames = loaded, frames

    @functools.cached_property
    def tokens(self) -> dict[str, int]:
        """How many tokens come into the first block of each tower."""
        with torch.inference_mode(), self._inputs() as inputs:
            traced = trace(self.loaded.model, **inputs).tokens
        # behind the projector a video's frames are one sequence, of which this sees one frame
        left_out = "projector" if self.frames else ""
        return {tower: blocks[0][0] for tower, blocks in traced.items() if tower != left_out}

    def _inputs(self) -> contextlib.AbstractContextManager[dict[str, Any]]:
        return self.loaded.valueless_inputs(frames=self.frames)

    def check(self, method: str, arguments: Mapping[str, Any]) -> None:
        """Check the arguments of `reduced()` for a method.

        Raises:
            BenchError: what makes no sense in this model; Unsupported, where nothing would.
        """
        reduce.check_request(self.loaded.model, self.tokens, method, arguments)
        cls = registry.method(method)
        parameters = set(arguments) & {*own(cls)} - {"seed"}
        if parameters and not issubclass(cls, Learner):
            self._try(method, arguments)

    def _try(self, method: str, arguments: Mapping[str, Any]) -> None:
        """Run a method once: it alone knows what its parameters can be for so many tokens."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            inputs = stack.enter_context(self._inputs())
            stack.enter_context(reduce.reduced(self.loaded.model, method, **arguments))
            try:
                self.loaded.model(**inputs)
            except BenchError:
                raise
            except Exception:  # no mistake of the user's: the cell meets it, and its record says so
                return
