"""Weights go into a model as a whole or not at all: what lacks or misfits a tensor is an error.

Libraries fill such gaps with random numbers, and an accuracy would come out of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.core.errors import BenchError
from bench.models.files import check_file
from bench.models.loading import first_line

if TYPE_CHECKING:
    Shapes = Mapping[str, tuple[int, ...]]

SHOWN = 3  # tensors that a message names


def check(source: str, wanted: Shapes, stored: Shapes, surplus: bool = False) -> None:
    """See that `source` holds the tensors that a model wants, in their shapes.

    Args:
        source: what the message calls the weights.
        wanted: the model's shapes, by name.
        stored: those of the weights.
        surplus: let the weights hold other tensors, too.

    Raises:
        BenchError: it names the first tensors of each fault, and how many there are.
    """
    tensors = {
        f"of {len(wanted)} tensors missing": [name for name in wanted if name not in stored],
        "of another shape": [
            f"{name} is {stored[name]} and must be {shape}"
            for name, shape in wanted.items()
            if stored.get(name, shape) != shape
        ],
        "unknown to it": [name for name in stored if name not in wanted and not surplus],
    }
    faults = [f"{len(names)} {what} ({_first(names)})" for what, names in tensors.items() if names]
    if faults:
        raise BenchError(
            f"{source} does not fit this model: {'; '.join(faults)}: "
            "get it again or name another model"
        )


def _first(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors, by name."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def read(file: Path) -> dict[str, Tensor]:
    """Return the tensors in a file of safetensors.

    Raises:
        BenchError: it is missing or broken.
    """
    check_file(file)
    try:
        return dict(load_file(file))
    except Exception as error:
        raise BenchError(
            f"weights file {file} cannot be read ({first_line(error)}): get it again"
        ) from error


def fill(model: nn.Module, file: Path) -> None:
    """Load a file's tensors into a model.

    Raises:
        BenchError: the file is broken, or holds other tensors than the model has.
    """
    state = read(file)
    check(f"weights file {file}", shapes(model.state_dict()), shapes(state))
    model.load_state_dict(state)


def from_pretrained(auto: Any, where: str | Path, **settings: Any) -> Any:
    """Return the model of a class of transformers that was saved at `where`, all its tensors there.

    Its tied tensors are stored once, which transformers knows of; it may hold more than the model
    takes, as the head of another task. The pooler of an encoder without a head may be missing (DINO
    has none): no task scores such a model, and no count or time depends on the pooler's values.

    Raises:
        BenchError: tensors are missing or of another shape.
    """
    model, report = auto.from_pretrained(
        where,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        use_safetensors=True,
        trust_remote_code=False,
        **settings,
    )
    wanted = shapes(model.state_dict())
    missing = {name for name in report["missing_keys"] if not name.startswith("pooler.")}
    stored = {name: shape for name, shape in wanted.items() if name not in missing}
    stored |= {name: tuple(shape) for name, shape, _ in report["mismatched_keys"]}
    check(f"checkpoint {where}", wanted, stored)
    return model


@contextlib.contextmanager
def checked(source: str) -> Iterator[None]:
    """Check every state dict that a library loads while it builds a model; refuse pickles.

    For timm, which builds and fills a model in one call, some loosely, and reports no gaps; where
    the hub has no safetensors it would read a pickle.
    """
    load, unpickle = nn.Module.load_state_dict, torch.load

    def complete(model: nn.Module, state: Mapping[str, Any], strict: bool = True, **kw: Any) -> Any:
        check(source, shapes(model.state_dict()), shapes(state), surplus=not strict)
        return load(model, state, strict, **kw)

    def refuse(*arguments: Any, **kw: Any) -> Never:
        raise BenchError(
            f"{source} is a pickle, which is never loaded: name one in safetensors, or a file of "
            "your own, timm:NAME@FILE"
        )

    setattr(nn.Module, "load_state_dict", complete)  # noqa: B010  # mypy lets no method be assigned
    torch.load = refuse
    try:
        yield
    finally:
        setattr(nn.Module, "load_state_dict", load)  # noqa: B010
        torch.load = unpickle
