"""A GPU that is pretended: tensors are the CPU's and say that they are on cuda, as one asked for.

What `torch.cuda` offers is replaced by functions of the same signatures, so that a misspelt name or
argument fails as it would on a GPU. What is not replaced fails, as there is no driver.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

NAME, MULTIPROCESSORS = "NVIDIA H200", 132
HELD, PEAK, FREE = 100 << 20, 150 << 20, 100 << 30  # bytes
GETTERS: dict[Any, Any] = {
    Tensor.is_cuda.__get__: True,  # type: ignore[attr-defined]
    Tensor.device.__get__: torch.device("cuda", 0),  # type: ignore[attr-defined]
}


class NotReady(RuntimeError):
    """An event was read before anybody waited for it."""


class Gpu:
    """What was asked of it: `calls` by the names of `torch.cuda`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: Counter[str] = Counter()
        self.waited = 0.0
        answers: dict[str, Callable[..., Any]] = {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "is_bf16_supported": lambda including_emulation=True: True,
            "device_count": lambda: 1,
            "current_stream": lambda device=None: SimpleNamespace(device=device),
            "synchronize": self._synchronize,
            "get_device_name": lambda device=None: NAME,
            "get_device_properties": self._properties,
            "manual_seed_all": lambda seed: None,
            "get_rng_state": lambda device="cuda": torch.zeros(1),
            "set_rng_state": lambda new_state, device="cuda": None,
            "set_sync_debug_mode": lambda debug_mode: None,
            "empty_cache": lambda: None,
            "mem_get_info": lambda device=None: (FREE, 2 * FREE),
            "memory_allocated": lambda device=None: HELD,
            "max_memory_allocated": lambda device=None: PEAK,
            "reset_peak_memory_stats": lambda device=None: None,
        }
        for name, answer in answers.items():
            patch.setattr(torch.cuda, name, self._spoken(name, answer))
        patch.setattr(torch.cuda, "Event", _events(self))

    def _spoken(self, name: str, answer: Callable[..., Any]) -> Any:
        """`answer` with the signature of what it stands for, counted."""

        def counted(*args: Any, **kw: Any) -> Any:
            self.calls[name] += 1
            return answer(*args, **kw)

        return create_autospec(getattr(torch.cuda, name), side_effect=counted)

    def _synchronize(self, device: Any = None) -> None:
        self.waited = time.perf_counter()

    def _properties(self, device: Any = None) -> Any:
        return SimpleNamespace(name=NAME, multi_processor_count=MULTIPROCESSORS)


def _events(gpu: Gpu) -> type:
    class Event:
        """A moment on the GPU's stream; it can be read once somebody waited for it."""

        def __init__(self, enable_timing: bool = False) -> None:
            gpu.calls["Event"] += 1
            self.timed, self.at = enable_timing, 0.0

        def record(self, stream: Any = None) -> None:
            self.at = time.perf_counter()

        def elapsed_time(self, end_event: Event) -> float:
            if not (self.timed and end_event.timed and self.at > 0 and end_event.at < gpu.waited):
                raise NotReady
            return 1e3 * (end_event.at - self.at)

    return Event


class Pretending(TorchFunctionMode):
    """Tensors that are asked for on cuda are made on the CPU, and say that they are on cuda."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in GETTERS:
            said = func(*args)
            return GETTERS[func] if said in (False, torch.device("cpu")) else said
        if func is not torch.device:
            args = tuple(map(_on_cpu, args))
            kwargs = {name: _on_cpu(value) for name, value in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


def _on_cpu(value: Any) -> Any:
    named = isinstance(value, str) and value.partition(":")[0] == "cuda"
    there = isinstance(value, torch.device) and value.type == "cuda"
    return torch.device("cpu") if named or there else value


@contextmanager
def pretended() -> Iterator[Gpu]:
    """A GPU for the time of the block."""
    with pytest.MonkeyPatch.context() as patch:
        gpu = Gpu(patch)
        with Pretending():
            yield gpu
