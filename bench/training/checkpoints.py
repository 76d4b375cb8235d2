"""Checkpoints of a training: folders that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from bench.core.documents import read_json
from bench.core.errors import BenchError
from bench.records import files

ABOUT = "about.json"  # says which step of which training


class TrainingError(BenchError):
    """Training cannot start or go on; the message names the fix."""


def check_same(there: Mapping[str, Any], about: Mapping[str, Any], folder: Path) -> None:
    """Raise TrainingError when a folder holds another training than the one `about` describes."""
    other = [f"{key} is {there.get(key)}" for key, mine in about.items() if there.get(key) != mine]
    if other:
        raise TrainingError(
            f"{folder} holds another training ({', '.join(other)} there): "
            "name another folder with --out, or begin anew with --no-resume"
        )


def folders(out: Path) -> list[Path]:
    """Return the folders `checkpoint-STEP` in `out`, the newest last, incomplete ones included."""
    return sorted(out.glob("checkpoint-*"))


def restore(processes: Any, about: Mapping[str, Any], out: Path) -> tuple[int, float]:
    """Load the newest complete checkpoint; return its step and loss, zeros where there is none.

    Raises:
        TrainingError: it is another training's, or damaged.
    """
    complete = [path for path in folders(out) if (path / ABOUT).is_file()]
    if not complete:
        return 0, 0.0
    folder = complete[-1]
    try:
        there = read_json(folder / ABOUT)
        check_same(there["about"], about, out)
        processes.load_state(str(folder))
        _remove_others(out, folder)  # a kill may have kept `save` from it
        return int(there["step"]), float(there["loss"])
    except TrainingError:
        raise
    except Exception as error:  # whatever torch and safetensors raise at damaged files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TrainingError(f"cannot resume from {folder} ({reason}): delete it") from error


def save(processes: Any, about: Mapping[str, Any], out: Path, step: int, loss: float) -> None:
    """Write a checkpoint, then delete those before; a kill leaves one of them complete.

    Args:
        processes: the accelerate.Accelerator that holds what is trained.
        about: what the checkpoint says of itself.
        out: the training's folder.
        step: steps so far.
        loss: the mean of the last of them.

    Raises:
        TrainingError: it cannot be written; those before are still there.
    """
    folder = out / f"checkpoint-{step:08d}"
    progress = {"step": step, "loss": loss, "about": about}
    with saving(folder) as scratch:
        processes.save_state(str(scratch))
        (scratch / ABOUT).write_text(json.dumps(progress) + "\n")
    _remove_others(out, folder)


def _remove_others(out: Path, folder: Path) -> None:
    for path in folders(out):
        if path != folder:
            files.remove(path)


@contextlib.contextmanager
def saving(path: Path) -> Iterator[Path]:
    """Yield where to write a file or folder of weights; it gets its name once it is complete.

    Raises:
        TrainingError: it cannot be written.
    """
    scratch = files.temporary(path.parent)
    try:
        yield scratch
        if path.is_dir():  # which a folder can only take the place of where that is empty
            files.remove(path)
        os.replace(scratch, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's and safetensors' own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TrainingError(
            f"cannot write {path} ({reason[:160]}): make room, then the same command goes on"
        ) from error
    finally:
        files.remove(scratch)
