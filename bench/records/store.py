"""The folder of records: one JSON file a cell, written whole or not at all.

`results/MACHINE/SUITE/MODEL--TASK--LABEL--KEY12.json`. Several runners may share a folder: a cell
under way is guarded by a lock file that the operating system holds (`filelock`), so that a killed
runner's lock is free at once. Nothing here needs torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from filelock import FileLock, Timeout

from bench.core.errors import BenchError
from bench.records import files
from bench.records.fates import FOLDER
from bench.records.record import Cell, Record

SHARDS = ".shards"  # beside records: the answers of shards, until they are merged
BUDGETS = "budgets.json"  # at the root: budgets that were solved, no record
KEY_CHARACTERS = 12  # of the key, in a file name
MAX_NAME = 200  # characters of a file's name ahead of the key; file systems take 255 in all


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
        name = f"{stem(cell.model, cell.task, cell.label)}--{key[:KEY_CHARACTERS]}.json"
        return self.root / stem(machine) / stem(cell.suite) / name

    def get(self, cell: Cell, key: str, machine: str) -> Record | None:
        """Return the record with exactly this key, or None when there is none that can be read."""
        record = _read(self.path(cell, key, machine))
        return record if record is not None and record.key == key else None

    def has(self, key: str) -> bool:
        """Whether any machine's folder holds a finished record with this key."""
        paths = self.root.glob(f"*/*/*--{key[:KEY_CHARACTERS]}.json")
        records = map(_read, paths)
        return any(record is not None and record.key == key and record.done for record in records)

    def write(self, record: Record) -> Path:
        """Write `record` atomically and drop what it supersedes; return its path.

        Superseded is a record of the very same cell under another key: the method's source, the
        weights or the task's data have changed since.

        Raises:
            BenchError: it cannot be written; what it would supersede is still there.
        """
        path = self.path(record.cell, record.key, str(record.env["machine"]))
        files.write_atomic(path, record.to_json() + "\n")
        prefix = path.name[: -len(f"{record.key[:KEY_CHARACTERS]}.json")]
        for other in path.parent.iterdir():
            if other != path and other.name.startswith(prefix) and other.suffix == ".json":
                old = _read(other)
                if old is not None and old.cell == record.cell and old.key != record.key:
                    files.remove(other)
        return path

    def read_all(self) -> list[Record]:
        """Return every record under the root, by path; what cannot be read is in `problems`."""
        self.problems = []
        records = []
        for path in self.paths():
            try:
                records.append(Record.read(path))
            except BenchError as error:
                self.problems.append(f"{error}; skipped")
        return records

    def paths(self) -> list[Path]:
        """Return the files under the root that are records, or should be, by path."""
        return [
            path
            for path in sorted(self.root.rglob("*.json"))
            if not path.name.startswith(".") and path.name != BUDGETS
            if path.parent.name != FOLDER
        ]

    def count(self, suite: str) -> int:
        """Return how many records there are of a suite, of all machines; nothing is read."""
        return sum(1 for _ in self.root.glob(f"*/{stem(suite)}/*.json"))

    def check_writable(self) -> None:
        """Raise BenchError when records cannot be written here; leaves nothing behind."""
        fix = "make it writable or choose another with --results FOLDER"
        with files.writing(f"to the results folder {self.root}", fix):
            files.check_writable(self.root)

    def clean(self) -> None:
        """Remove what killed runners left: temporary files of dead processes, idle locks."""
        inner = (self.root.glob(f"*/*/{name}") for name in (FOLDER, SHARDS))
        for folder in (self.root, *self.root.glob("*/*"), *chain.from_iterable(inner)):
            for path in files.leftovers(folder):
                files.remove(path)
        for lock in self.root.glob("*/*/.locks/*.lock"):
            with _locked(lock):
                pass

    @contextlib.contextmanager
    def claim(self, cell: Cell, key: str, machine: str, part: str = "") -> Iterator[bool]:
        """Hold the cell, or a part of it, for this process; yields False when another holds it."""
        folder = self.locks(cell, key, machine)
        with _locked(folder / f"{key[:KEY_CHARACTERS]}{part}.lock") as mine:
            yield mine

    def locks(self, cell: Cell, key: str, machine: str) -> Path:
        """Return the folder of a cell's lock; makes it.

        Raises:
            BenchError: it cannot be made: a file is in its place, say.
        """
        folder = self.path(cell, key, machine).parent / ".locks"
        with files.writing(folder, "move what is in its place, or choose another --results"):
            folder.mkdir(parents=True, exist_ok=True)
        return folder


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold a lock file, which names its owner for people; yields False while another holds it.

    The lock is the system's: it ends with its owner, however that ends. The file is unlinked while
    still held: whoever opened it before that is told that the lock is held, and comes back.
    """
    lock = FileLock(path)
    fix = "remove it, or choose another --results"
    with files.writing(path, fix), contextlib.suppress(Timeout):  # which is an OSError, too
        lock.acquire(blocking=False)
    if not lock.is_locked:
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
        return Record.read(path)
    except BenchError:
        return None


def slug(text: str) -> str:
    """Return `text` as a file-name part: letters, digits, dot, equals, dash and underscore."""
    return re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9._=]+", "-", text)).strip("-.") or "none"


def stem(*parts: str) -> str:
    """Return the slugs of some parts as one name; of a very long one a hash stands for the end."""
    name = "--".join(map(slug, parts))
    if len(name) <= MAX_NAME:
        return name
    return f"{name[: MAX_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
