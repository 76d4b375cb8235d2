"""What a bad input must come to: exit code 2, one short line, nothing written, at once."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typer.main import get_command

from bench.cli import app, outcome

LONGEST = 300  # characters of the line
SLOWEST = 10.0  # seconds of the processor


@dataclass(frozen=True)
class Bad:
    """A bad input.

    Attributes:
        name: says what is wrong, for people.
        arguments: of the command line, run in an empty folder.
        files: what lies in that folder, by path.
        prepare: makes there what is no plain file (links, pipes, folders, images).
        names: what the line must contain, such as the file, the place in it, the mend.
        code: the exit code.
    """

    name: str
    arguments: Sequence[str]
    files: dict[str, str | bytes] = field(default_factory=dict)
    prepare: Callable[[Path], object] | None = None
    names: Sequence[str] = ()
    code: int = 2


def faults_of(bad: Bad, folder: Path) -> list[str]:
    """Return what is wrong with how a bad input ends; empty when all is well.

    Args:
        bad: the input.
        folder: an empty folder, in which the command runs.
    """
    for name, content in bad.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    if bad.prepare:
        bad.prepare(folder)
    before = _tree(folder)
    start = time.process_time()  # a machine may be busy with other tests
    code, line = _run(bad.arguments, folder)
    seconds = time.process_time() - start
    faults = []
    if code != bad.code:
        faults.append(f"exit code {code}, not {bad.code}")
    if not line.startswith("error: ") or line.count("\n") != 1:
        faults.append("not one line that begins with 'error: '")
    if len(line) > LONGEST:
        faults.append(f"a line of {len(line)} characters")
    faults += [f"does not name {name!r}" for name in bad.names if name not in line]
    if (after := _tree(folder)) != before:
        faults.append(f"wrote {sorted(after ^ before)}")
    if seconds > SLOWEST:
        faults.append(f"took {seconds:.0f} s")
    return [f"{bad.name}: {fault}: {line[:400]}" for fault in faults]


def _tree(folder: Path) -> set[tuple[str, int]]:
    return {(str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*")}


@functools.cache
def _commands() -> Any:
    """Return the commands, built once: that is what takes most of a call's time."""
    return get_command(app.app)


def _run(arguments: Sequence[str], folder: Path) -> tuple[int | str, str]:
    """Return the exit code, or what was raised, and what went to stderr."""
    errors, argv, cwd = io.StringIO(), sys.argv, Path.cwd()
    sys.argv = ["run_bench.py", *arguments]
    os.chdir(folder)
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            return outcome(_commands(), "run_bench.py"), errors.getvalue()
    except Exception as error:
        return f"a traceback of {type(error).__name__}", errors.getvalue() + str(error)
    finally:
        os.chdir(cwd)
        sys.argv = argv
