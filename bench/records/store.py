"""The folder of records: one JSON file a cell, written whole or not at all.

`results/MACHINE/SUITE/MODEL--TASK--LABEL--KEY12.json`. Several runners may share a folder: a cell
under way is guarded by a lock file that the operating system holds (`filelock`), so that a killed
runner's lock is free at once. Nothing here needs torch.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from bench.core.errors import BenchError
from bench.records.fates import FOLDER
from bench.records.record import Cell, Record

BUDGETS = "budgets.json"  # at the root: budgets that were solved, no record
KEY_CHARACTERS = 12  # of the key, in a file name
STALE_TMP_SECONDS = 3600.0


class Store:
    """Records under `root`, for all machines and suites.

    Attributes:
        problems: one line for each file that the last `read_all` could not use.
    """

    def __init__(self, root: str | Path) -> None:
        """Name the folder; it is made at the first write."""
        self.root = Path(root)
        self.problems: list[str] = []

    def path(self, cell: Cell, key: str, machine: str) -> Path:
        """Return where the record of `cell` on `machine` belongs."""
        stem = "--".join(slug(part) for part in (cell.model, cell.task, cell.label))
        name = f"{stem}--{key[:KEY_CHARACTERS]}.json"
        return self.root / slug(machine) / slug(cell.suite) / name

    def get(self, cell: Cell, key: str, machine: str) -> Record | None:
        """Return the record with exactly this key, or None when there is none that can be read."""
        with contextlib.suppress(OSError, ValueError):
            record = Record.from_json(self.path(cell, key, machine).read_bytes())
            return record if record.key == key else None
        return None

    def has(self, key: str) -> bool:
        """Whether any machine's folder holds a finished record with this key."""
        files = self.root.glob(f"*/*/*--{key[:KEY_CHARACTERS]}.json")
        records = (_read(file) for file in files)
        return any(record is not None and record.key == key and record.done for record in records)

    def write(self, record: Record) -> Path:
        """Write `record` atomically and drop what it supersedes; return its path.

        Superseded is a record of the very same cell under another key: the method's source, the
        weights or the task's data have changed since.
        """
        path = self.path(record.cell, record.key, str(record.env["machine"]))
        write_atomic(path, record.to_json() + "\n")
        prefix = path.name[: -len(f"{record.key[:KEY_CHARACTERS]}.json")]
        for other in path.parent.iterdir():
            if other != path and other.name.startswith(prefix) and other.suffix == ".json":
                old = _read(other)
                if old is not None and old.cell == record.cell and old.key != record.key:
                    other.unlink(missing_ok=True)
        return path

    def read_all(self) -> list[Record]:
        """Return every record under the root, by path; what cannot be read is in `problems`."""
        self.problems = []
        records = []
        for path in sorted(self.root.rglob("*.json")):
            if path.name.startswith(".") or path.name == BUDGETS or path.parent.name == FOLDER:
                continue
            try:
                records.append(Record.from_json(path.read_bytes()))
            except (OSError, ValueError) as error:
                why = str(error).splitlines()[0] if str(error) else type(error).__name__
                self.problems.append(f"{path}: not a complete record ({why}); skipped")
        return records

    def check_writable(self) -> None:
        """Raise BenchError when records cannot be written here; leaves nothing behind."""
        made = [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
        probe = self.root / f".write-test.{os.getpid()}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.write_text("")
            probe.unlink()
            for folder in made:
                folder.rmdir()
        except OSError as error:
            raise BenchError(
                f"cannot write to the results folder {self.root} ({error.strerror}): "
                "make it writable or choose another with --results FOLDER"
            ) from error

    def clean(self) -> None:
        """Remove what killed runners left: half-written files older than an hour, idle locks."""
        for tmp in self.root.glob("*/*/.*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - tmp.stat().st_mtime > STALE_TMP_SECONDS:
                    tmp.unlink()
        for lock in self.root.glob("*/*/.locks/*.lock"):
            with _locked(lock):
                pass

    @contextlib.contextmanager
    def claim(self, cell: Cell, key: str, machine: str) -> Iterator[bool]:
        """Hold the cell for this process; yields False when another runner holds it."""
        folder = self.path(cell, key, machine).parent / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"{key[:KEY_CHARACTERS]}.lock") as mine:
            yield mine


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold a lock file, which names its owner for people; yields False while another holds it.

    The lock is the system's: it ends with its owner, however that ends. The file is unlinked while
    still held: whoever opened it before that is told that the lock is held, and comes back.
    """
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        with contextlib.suppress(OSError):  # Windows lets nobody write into a locked file
            path.write_text(f"{os.getpid()} {socket.gethostname()}\n")
        yield True
    finally:
        with contextlib.suppress(OSError):  # nor unlink it: there the empty file stays
            path.unlink()
        lock.release()


def _read(path: Path) -> Record | None:
    try:
        return Record.from_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that a kill leaves either the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with tmp.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def slug(text: str) -> str:
    """Return `text` as a file-name part: letters, digits, dot, equals, dash and underscore."""
    return re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9._=]+", "-", text)).strip("-.") or "none"
