"""A GPU that is not there: tensors of device "cuda" without values, on which each wait is noticed.

PyTorch's fake tensors have a device and a shape. An operator on tensors of two devices raises, and
so does what needs a value. To go on behind a wait that is allowed, a pass with values on the CPU
notes the answers first (`Recording`), and the pass without values gets them (`Replaying`), by the
place that asks.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers.models.beit.modeling_beit import BeitRelativePositionBias
from transformers.models.dinov3_vit import modeling_dinov3_vit
from transformers.models.vilt.modeling_vilt import ViltEmbeddings

ROOT = Path(__file__).resolve().parents[1]
MODE = FakeTensorMode()
ITEM_BY_ITEM = FakeTensor.tolist  # which no mode sees, and which raises
INDEX, CENTRES = "generate_relative_position_index", "get_patches_center_coordinates"  # kept
ASKED_WHOLE = ViltEmbeddings.visual_embed
ASKING = {
    "item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__", "is_nonzero",
    "nonzero", "argwhere", "unique", "unique_consecutive", "masked_select", "equal", "allclose",
}  # fmt: skip
Answers = Mapping[str, deque[Any]]


class Wait(NamedTuple):
    """Somebody asked the GPU: `place` is the file and function, `what` the call."""

    place: str
    what: str


def place() -> str:
    """File and function of the innermost caller that is neither PyTorch's nor this file's."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if file := _file(frame.f_code.co_filename):
            return f"{file}: {frame.f_code.co_qualname.split('.<')[0]}"
        frame = frame.f_back
    return "unknown"


@functools.cache
def _file(name: str) -> str:
    """A file's name, from the repository or the library on; "" for those of no interest."""
    path = Path(name)
    if "site-packages" in path.parts:
        inside = path.parts[path.parts.index("site-packages") + 1 :]
        return "" if inside[0] == "torch" else "/".join(inside)
    ours = path != Path(__file__) and path.is_relative_to(ROOT)
    return path.relative_to(ROOT).as_posix() if ours else ""


def asks(func: Any, args: Any) -> bool:
    """Whether a call answers with a value, or with a tensor whose shape depends on values."""
    name = getattr(func, "__name__", "")
    if name == "__getitem__":
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in index)
    if name == "repeat_interleave":
        return len(args) > 1 and isinstance(args[1], Tensor)
    if name == "tensor":  # of tensors, which are asked for their values
        return isinstance(args[0], list | tuple) and any(isinstance(t, Tensor) for t in args[0])
    if name == "arange":
        return any(isinstance(end, Tensor) for end in args)
    return name in ASKING or (name == "where" and len(args) == 1)


def on_gpu(args: Any) -> bool:
    """Whether a tensor among these has the device cuda."""
    return any(isinstance(t, Tensor) and t.is_cuda for t in tree_leaves(args))


# What asks in many places, of which some are out of sight: taken as a whole.
WHOLE = "transformers/models/vilt/modeling_vilt.py: ViltEmbeddings.visual_embed as a whole"


class Recording(TorchFunctionMode):
    """Notes the answers of a pass with values, by the place that asked."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, deque[Any]] = defaultdict(deque)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        if asks(func, args):
            self.answers[place()].append(answer)
        return answer

    def whole(self, embed: Any, *args: Any, **kw: Any) -> Any:
        """Note what ViLT's embedding answers."""
        self.answers[WHOLE].append(ASKED_WHOLE(embed, *args, **kw))
        return self.answers[WHOLE][-1]


class Replaying(TorchFunctionMode):
    """Notes who asks, and gives the noted answers; where there is none, PyTorch raises."""

    def __init__(self, answers: Answers, waits: list[Wait]) -> None:
        super().__init__()
        self.answers, self.waits = answers, waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = self.answers.get(where := place()) if asks(func, args) else None
        if not known:
            func = ITEM_BY_ITEM if func is Tensor.tolist else func
            return func(*args, **(kwargs or {}))
        if on_gpu(args):
            self.waits.append(Wait(where, func.__name__))
        device = (kwargs or {}).get("device") or getattr(args[0], "device", "cpu")
        return tree_map(functools.partial(_shaped, device=device), known.popleft())

    def whole(self, embed: Any, x: Tensor, *args: Any, **kw: Any) -> Any:
        """Give what ViLT's embedding answered."""
        self.waits.append(Wait(WHOLE, "visual_embed"))
        return tree_map(functools.partial(_shaped, device=x.device), self.answers[WHOLE].popleft())


def _shaped(answer: Any, device: Any) -> Any:
    if not isinstance(answer, Tensor):
        return answer
    return torch.empty(answer.shape, dtype=answer.dtype, device=device)


class Watching(TorchDispatchMode):
    """Notes what else waits: copies between host and GPU, and operators that hide what they do."""

    def __init__(self, waits: list[Wait]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name, hidden = func.__name__, func.namespace not in ("aten", "prim", "prims")
        if hidden or "copy" in name or name.startswith("index_put"):
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            kinds = {t.device.type for t in tensors}
            copied = "copy" in name and len(kinds) > 1
            if "cuda" in kinds and (hidden or copied or _by_mask(func, args)):
                self.waits.append(Wait(place(), str(func)))
        return out


def _by_mask(func: Any, args: Any) -> bool:
    """Whether an operator writes a tensor to where a mask says, which counts its places."""
    if not func.__name__.startswith("index_put") or args[2].numel() == 1:
        return False
    return any(t is not None and t.dtype == torch.bool for t in args[1])


@contextmanager
def recorded() -> Iterator[Answers]:
    """Run with values; yields what is answered."""
    with torch.no_grad(), Recording() as mode, patch.object(ViltEmbeddings, *_whole(mode)):
        yield mode.answers


@contextmanager
def gpu(answers: Answers | None = None) -> Iterator[list[Wait]]:
    """Run on the GPU that is not there; yields the waits."""
    waits: list[Wait] = []
    mode = Replaying(answers or {}, waits)
    with (
        patch.object(FakeTensor, "tolist", Tensor.tolist),
        patch.object(ViltEmbeddings, *_whole(mode)),
        patch.object(BeitRelativePositionBias, *_uncached(BeitRelativePositionBias, INDEX)),
        patch.object(modeling_dinov3_vit, *_uncached(modeling_dinov3_vit, CENTRES)),
        torch.no_grad(),
        MODE,
        Watching(waits),
        mode,
    ):
        yield waits


def _uncached(holder: Any, name: str) -> tuple[str, Any]:
    """What transformers would keep for real passes: it has no values."""
    return name, staticmethod(getattr(holder, name).__wrapped__)


def _whole(mode: Recording | Replaying) -> tuple[str, Any]:
    return "visual_embed", lambda *args, **kw: mode.whole(*args, **kw)


def on_host(value: Any) -> Any:
    """A tensor without values on the CPU; what is no tensor stays as it is."""
    return MODE.from_tensor(value.detach()) if isinstance(value, Tensor) else value


def on_cuda(value: Any) -> Any:
    """The same on the GPU; what is no tensor stays as it is."""
    if not isinstance(value, Tensor):
        return value
    with MODE:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")


def model_on_cuda(model: nn.Module) -> Any:
    """A copy of a model as `.to("cuda")` leaves it: tensors that it does not know stay behind."""
    twin: Any = copy.deepcopy(model)
    for module in twin.modules():
        module._buffers.update({name: on_cuda(t) for name, t in module._buffers.items()})
        for name, t in module._parameters.items():
            kept = None if t is None else nn.Parameter(on_cuda(t), requires_grad=False)
            module._parameters[name] = kept
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                object.__setattr__(module, name, on_host(value))
    if guide := getattr(twin, "text_guide", None):
        twin.text_guide = replace(guide, clip=model_on_cuda(guide.clip))
    return twin
