"""What every source of models shares: errors in one line, device, dtype, attention backend.

Nothing here runs code from a download or a folder: weights are safetensors alone, pickles are
refused, and `trust_remote_code` is never set.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_session
from torch import nn

from bench.core.errors import BenchError
from bench.engine.families import adapter_for
from bench.models.loaded import Loaded
from bench.models.shapes import shapes

COSTS_ALONE = ", or add --random-weights for the cost columns alone"
_OFFLINE = f"give a local folder, fill the hub's cache where there is a network{{how}}{COSTS_ALONE}"


def finish(loaded: Loaded, device: str, dtype: str | torch.dtype, backend: str) -> Loaded:
    """Put a model on its device, in its dtype and attention backend; check that it is supported."""
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    model = loaded.model.eval().requires_grad_(False)
    provenance = dict(loaded.provenance)
    if provenance.get("sha256") is None:
        provenance["sha256"] = state_hash(model, loaded.random)
    adapter_for(model)
    set_backend(model, backend)
    return dataclasses.replace(
        loaded, model=model.to(device=device, dtype=wanted), provenance=provenance
    )


def state_hash(model: nn.Module, random_weights: bool) -> str:
    """Return the sha256 over a model's parameters and buffers, by name."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        if not random_weights:  # their seed says it all, and a large model takes a while
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def backends_of(model: nn.Module) -> tuple[str, ...]:
    """Return the attention backends that a model has, the usual one first."""
    fused = getattr(model, "_supports_sdpa", True)  # transformers says so; timm has both
    return ("sdpa", "eager") if fused else ("eager",)


def set_backend(model: nn.Module, backend: str) -> None:
    """Make attention run as "sdpa" or "eager"; a model that has one way alone stays as it is.

    Raises:
        BenchError: another name.
    """
    if backend not in ("sdpa", "eager"):
        raise BenchError(f"unknown attention backend '{backend}': sdpa or eager")
    if len(backends_of(model)) == 1:
        return
    switch: Any = getattr(model, "set_attn_implementation", None)
    if switch is not None:
        switch(backend)
        return
    module: Any
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = backend == "sdpa"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' progress bars and advice out of the terminal."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


@functools.cache
def hub_answers() -> bool:
    """Whether the Hugging Face hub can be reached: asked once, where a download tries six times."""
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # of whatever library the hub's client uses; offline mode is one, too
        return False
    return True


@contextlib.contextmanager
def fetching(
    name: str, hub: str, random_weights: bool, folder: Path | None = None
) -> Iterator[None]:
    """Turn what goes wrong while a model is fetched into one line that names the fix.

    Args:
        name: as the user typed it.
        hub: "timm" or "Hugging Face".
        random_weights: whether the model is made from its shape alone.
        folder: where it is on disk, if it is.
    """
    try:
        yield
    except BenchError:
        raise
    except Exception as error:
        if folder is not None:
            raise BenchError(
                f"{folder / 'config.json'} describes no model that can be made "
                f"({first_line(error)}): write the folder anew with save_pretrained"
            ) from error
        if random_weights:
            known = ", ".join(shapes())
            fix = f"without a hub these shapes are known: {known}"
            if hub == "timm":
                fix = _OFFLINE.format(how="")
            raise BenchError(f"cannot build '{name}' ({first_line(error)}): {fix}") from error
        fix = _OFFLINE.format(how="" if hub == "timm" else f" (hf download {name})")
        raise BenchError(f"cannot load '{name}' from {hub} ({first_line(error)}): {fix}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, cut to what fits one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
