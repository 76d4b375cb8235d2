"""Processes that are killed, or find the disk full, at a chosen step of what they write.

They are forks of this one, so that a step costs milliseconds: an audit hook counts what they do to
files below a folder, and kills them with SIGKILL ahead of the step.
"""

from __future__ import annotations

import itertools
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cli import outcome

Action = Callable[[], object]
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}
LONGEST = 300  # characters of an error's line


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code or the signal that killed it, and what it said."""

    process: int
    code: int | None
    signal: int | None
    errors: str


def forked(action: Action, before: Action = lambda: None, session: bool = False) -> Ended:
    """Run `before` and `action` as a command of its own; see `outcome` for its exit codes."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        code = 99  # a traceback
        try:
            os.close(reading)
            if session:
                os.setsid()
            os.dup2(writing, 2)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            before()
            code = outcome(lambda **_: action(), "test")  # type: ignore[arg-type]
        except SystemExit as left:
            code = int(left.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    status = os.waitpid(process, 0)[1]
    with os.fdopen(reading) as pipe:
        os.set_blocking(reading, False)  # children that it left may hold the other end
        errors = pipe.read() or ""
    if os.WIFSIGNALED(status):
        return Ended(process, None, os.WTERMSIG(status), errors)
    return Ended(process, os.WEXITSTATUS(status), None, errors)


def dying(action: Action, folder: Path, every: int = 1) -> Iterator[int]:
    """Yield after each step at which a run of `action` was killed, until one comes through.

    Args:
        action: what writes below `folder`; it must do the same each time.
        folder: whose files count; restored by the caller between two steps.
        every: try each so many steps.
    """
    for step in itertools.count(1, every):
        ended = forked(action, before=lambda step=step: _die_at(step, folder))  # type: ignore[misc]
        if ended.signal is None:
            assert ended.code == 0, ended.errors
            assert step > 1, "nothing was written"
            return
        assert ended.signal == signal.SIGKILL, ended
        yield step


def without_room(action: Action, size: int) -> Ended:
    """Run `action` where no file can have more bytes than `size`, as on a disk that is full."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return forked(action, before=limit)


def half_way(action: Action, size: int) -> Ended:
    """Kill a run of `action` once a file has so many bytes, in the midst of a write."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return forked(action, before=limit)


def files_in(folder: Path) -> dict[str, bytes | None]:
    """Return what lies below a folder: the bytes of files, None for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def is_one_line(ended: Ended, *names: str) -> bool:
    """Whether a command ended with one short line that names what could not be written."""
    line = ended.errors
    whole = line.startswith("error: ") and line.count("\n") == 1 and len(line) <= LONGEST
    return ended.code == 2 and whole and all(name in line for name in names)


def _die_at(step: int, folder: Path) -> None:
    """Have this process killed ahead of its step of that number below a folder."""
    steps, root, sync = itertools.count(1), str(folder), os.fsync

    def count() -> None:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and str(arguments[0]).startswith(root):
            count()

    def fsync(file: int) -> None:
        count()  # all is written, nothing is safe
        sync(file)

    os.fsync = fsync
    sys.addaudithook(hook)
