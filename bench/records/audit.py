"""Whether a record can be what it says: what follows from its own contents is worked out again.

Metrics follow from outcomes, speed-ups from samples, a key from what it hashes. A record that was
forged throughout passes: only measuring again (`run_bench.py recheck`) tells.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError, shown
from bench.records import derived
from bench.records.cell_keys import HASHED, key_from
from bench.records.derived import Problem
from bench.records.outcomes import sample_scores
from bench.records.record import Record, label
from bench.records.sources import LIBRARIES, is_current
from bench.records.store import Store

LARGEST = 2**63  # of all that is measured or counted
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+=-]*")
_PLACE = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9 ._:/@+=,%-]*")  # ids, paths below a folder
_DETAILED = ("profile", "training")  # of the provenance
_KEY = re.compile("[0-9a-f]{64}")
_MARKUP = re.compile("[<>\x00-\x1f\x7f\u2028\u2029]")


def audit(record: Record) -> None:
    """Raise BenchError, which begins with the field, where a record contradicts itself."""
    for check in (
        _kinds,
        _numbers,
        _names,
        _key,
        derived.accuracy,
        derived.stops,
        derived.counts,
        derived.timings,
    ):
        for field, problem in check(record):
            raise BenchError(f"'{field}': {problem}")


def audit_file(path: Path) -> Record:
    """Return the record in a file that is what it says; raises BenchError, with file and field."""
    record = Record.read(path)
    try:
        audit(record)
    except BenchError as error:
        raise BenchError(f"{path}: {error}") from None
    place = Store("").path(record.cell, record.key, str(record.env["machine"]))
    if path.resolve().parts[-3:] != place.parts:
        raise BenchError(f"{path}: 'key': it belongs to the file {place}")
    return record


def audit_all(root: Path) -> dict[Path, Record]:
    """Return the records under a results folder, or in a single file, by path.

    Raises:
        BenchError: there is none, or one contradicts itself: the line names the first such file.
    """
    paths = Store(root).paths() if root.is_dir() else [root] if root.exists() else []
    if not paths:
        raise BenchError(f"no records in {root}: name a folder that run_bench.py run wrote")
    records, refused = {}, []
    for path in paths:
        try:
            records[path] = audit_file(path)
        except BenchError as error:
            refused.append(str(error))
    if refused:
        more = f" — and {len(refused) - 1} more refused" if len(refused) > 1 else ""
        raise BenchError(f"{refused[0]}{more}: measure it again, and edit no record")
    return records


def unchecked(record: Record) -> list[str]:
    """Return what `audit` cannot work out from a record's contents, so that only a re-run tells."""
    scored = record.accuracy
    names = [name for name in scored.metrics if sample_scores(name, scored.outcomes) is None]
    parts = [f"the metrics {', '.join(names)}"] if names else []
    return parts + ([] if _hash_is_known(record) else ["the key"])


def _kinds(record: Record) -> Iterator[Problem]:
    """Yield facts of a kind that nobody expects, where a record's form leaves it open."""
    for name in HASHED:
        if not isinstance(record.provenance.get(name), str | None):
            yield f"provenance.{name}", "no text"
    for part, facts in (("env", record.env), ("provenance", record.provenance)):
        for name, fact in facts.items():
            if isinstance(fact, dict | list) and name not in _DETAILED:
                yield f"{part}.{shown(name)}", "a list or a mapping, not a fact"


def _numbers(record: Record) -> Iterator[Problem]:
    for field, value in _leaves(record, ""):
        if isinstance(value, int | float) and not abs(value) < LARGEST:  # nor is NaN
            yield field, f"{shown(value)} is no number that a measurement gives"


def _leaves(value: Any, field: str) -> Iterator[tuple[str, Any]]:
    if hasattr(value, "__dataclass_fields__"):
        value = vars(value)
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, f"{field}.{shown(name)}" if field else str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item, field)
    else:
        yield field, value


# --- names and the key ---------------------------------------------------------------------------


def _names(record: Record) -> Iterator[Problem]:
    """Yield names that are none: they head pages, and files and folders are called after them."""
    cell = record.cell
    names: list[tuple[re.Pattern[str], str, Any]] = [
        (_NAME, f"cell.{name}", getattr(cell, name))
        for name in ("suite", "method", "profile", "dtype", "backend", "engine")
        if name not in ("dtype", "backend") or getattr(cell, name) is not None
    ]
    names += [(_NAME, "env.machine", record.env.get("machine"))]
    names += [(_PLACE, f"cell.{name}", getattr(cell, name)) for name in ("model", "task")]
    for field, value in _leaves(cell.params, "cell.params"):
        names += [(_NAME, field, field)] + [(_PLACE, field, value)] * isinstance(value, str)
    for pattern, field, value in names:
        if not (isinstance(value, str) and pattern.fullmatch(value)):
            yield field, f"'{shown(value)}' is no name: it has characters of scripts or paths"
    if cell.label != label(cell.method, cell.params):
        yield "cell.label", f"'{shown(cell.label)}' does not name the method and its parameters"
    texts = {
        "cell.label": cell.label,
        "cell.names": [*cell.names, *cell.names.values()],
        "accuracy.metrics": [(name, one.unit) for name, one in record.accuracy.metrics.items()],
        "command": record.command,
        "env": record.env,
        "provenance": record.provenance,
    }
    for field, value in _leaves(texts, ""):
        if isinstance(value, str) and _MARKUP.search(value):
            yield field, f"'{shown(value)}' has markup or control characters"
    yield from _command(record.command)


def _command(command: str) -> Iterator[Problem]:
    """Yield a command that would do more in a shell than run the program."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    ours = words[:1] == ["run_bench.py"] or " ".join(words[:3]).startswith("python -m recipes.")
    if not ours or shlex.join(words) != command:
        yield "command", f"'{shown(command)}' is no plain call of run_bench.py"


def _key(record: Record) -> Iterator[Problem]:
    if not _KEY.fullmatch(record.key):
        yield "key", f"'{shown(record.key)}' is no sha256"
    try:
        datetime.fromisoformat(record.created)
    except ValueError:
        yield "created", f"'{shown(record.created)}' is no time"
    if _hash_is_known(record):
        env, provenance = record.env, record.provenance
        key = key_from(
            record.cell,
            libraries={name: env.get(name) or "not installed" for name in LIBRARIES},
            machine=env["machine"],
            profile=provenance["profile"],
            threads=env["threads"],
            provenance=provenance,
        )
        if key != record.key:
            yield "key", f"its contents give {key[:12]}…, not {record.key[:12]}…"


def _hash_is_known(record: Record) -> bool:
    """Whether this version of the program hashes what the record's key was made of."""
    noted = "profile" in record.provenance and "threads" in record.env
    return noted and is_current(record.provenance)
