"""What the records of one table do not have in common: library versions, code, hosts, age."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from bench.records.record import Record
from bench.records.sources import is_current
from bench.report.data import load

UNKNOWN = "unknown"
LIBRARIES = ("torch", "timm", "transformers")


def is_older(record: Record) -> bool:
    """Whether another version of the measuring code than the one at hand took a record."""
    return not is_current(record.provenance)


def older(records: Sequence[Record]) -> str:
    """Say how many records another version of the measuring code took; empty where none."""
    count = sum(map(is_older, records))
    if not count:
        return ""
    return (
        f"{count} of {len(records)} records were measured by an earlier version of the measuring "
        "code: run the suite again to renew them."
    )


def remark(records: Sequence[Record]) -> str:
    """Say which versions, and which hosts of one name, a table mixes; empty where it mixes none."""
    parts = []
    for name in LIBRARIES:
        values = Counter(str(record.env.get(name) or UNKNOWN) for record in records)
        parts += [f"{name} {counted(values)}"] if len(values) > 1 else []
    code = Counter(_short(record.provenance.get("measurement_sha256")) for record in records)
    parts += [f"measuring code {counted(code)}"] if len(code) > 1 else []
    for family in sorted({record.provenance.get("family", UNKNOWN) for record in records}):
        of_it = [one for one in records if one.provenance.get("family", UNKNOWN) == family]
        code = Counter(_short(record.provenance.get("family_sha256")) for record in of_it)
        parts += [f"code of the family {family} {counted(code)}"] if len(code) > 1 else []
    text = f"Versions are mixed: {'; '.join(parts)}." if parts else ""
    for machine in sorted({load.machine(record) for record in records}):
        hosts = fingerprints(r for r in records if load.machine(r) == machine)
        if len(hosts) > 1:
            text += f" {len(hosts)} hosts share the name {machine}: {counted(hosts)}."
    return text.strip()


def fingerprints(records: Iterable[Record]) -> Counter[str]:
    """Count the cells of each host; all records without a fingerprint count as one host."""
    return Counter(str(record.env.get("fingerprint") or UNKNOWN) for record in records)


def counted(values: Counter[str]) -> str:
    """Write values with the number of their cells, the most frequent first."""
    order = sorted(values.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{value} ({n} cell{'s' * (n != 1)})" for value, n in order)


def _short(sha256: str | None) -> str:
    return sha256[:12] if sha256 else UNKNOWN
