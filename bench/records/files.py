"""Files that are written whole or not at all, and what killed processes leave of them.

A temporary file or folder is named after its host and process, so that the next run can tell one
that is being written from one whose process is dead.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from bench.core.errors import BenchError

STALE_SECONDS = 3600.0  # older temporaries are nobody's, whatever their names say
_HOST = re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname())


@contextlib.contextmanager
def writing(what: object, fix: str) -> Iterator[None]:
    """Turn what the file system refuses (no space, no permission) into one line.

    Args:
        what: is written, such as a path; the line says so.
        fix: ends the line.

    Raises:
        BenchError: an OSError was raised inside.
    """
    try:
        yield
    except OSError as error:
        raise BenchError(f"cannot write {what} ({error.strerror or error}): {fix}") from error


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that a kill leaves either the old one or the new one.

    Raises:
        BenchError: the file cannot be written; the old one is still there.
    """
    write_bytes_atomic(path, text.encode("utf-8"))


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write bytes as `write_atomic` writes a text; raises as it does."""
    tmp = temporary(path.parent)
    with writing(path, "make room or choose another folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with tmp.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(tmp, path)
        finally:
            tmp.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raise OSError where a folder, which need not be there yet, takes no file; leave nothing."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder) as probe:  # nameless, where the system can do that
        probe.write(b"x")


def temporary(folder: Path) -> Path:
    """Return what this process calls a file or folder in `folder` until it is complete."""
    return folder / f".{_HOST}.{os.getpid()}.tmp"


def leftovers(folder: Path) -> list[Path]:
    """Return the temporary files and folders in `folder` whose processes are dead.

    This process must not be writing there: what has its number is a dead predecessor's.
    """
    return [path for path in sorted(folder.glob(".*.tmp")) if _is_dead(path)]


def remove(path: Path) -> None:
    """Remove a file or folder as far as that can be done."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _is_dead(path: Path) -> bool:
    host, _, number = path.name.removesuffix(".tmp")[1:].rpartition(".")
    ours = host == _HOST and number.isdecimal()
    if ours and (int(number) == os.getpid() or not psutil.pid_exists(int(number))):
        return True
    with contextlib.suppress(OSError):
        return time.time() - path.lstat().st_mtime > STALE_SECONDS
    return False
