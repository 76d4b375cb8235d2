"""The key of a cell from what is written in a record, so that one can be checked without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bench.records.record import SCHEMA, Cell

NAMES = ("suite", "label", "names")  # of a cell: what it is called changes no result
# Of a record's provenance, what its key hashes; the rest of it describes.
HASHED = (
    *("measurement_sha256", "family_sha256", "weights_sha256", "method_source_sha256"),
    *("task_version", "task_source_sha256", "files_sha256"),
)


def key_from(
    cell: Cell,
    *,
    libraries: Mapping[str, str],
    machine: str,
    profile: Mapping[str, Any],
    threads: int,
    provenance: Mapping[str, Any],
) -> str:
    """Return the sha256 over everything that a result depends on; the suite's name is not.

    Args:
        cell: as it was measured, with its dtype and attention backend.
        libraries: their versions by name.
        machine: the name of the results folder.
        profile: all fields of the hardware profile.
        threads: intra-op threads of PyTorch.
        provenance: has the hashes `HASHED`, as far as there are any; the rest is left out.
    """
    parts = {
        "schema": SCHEMA,
        "libraries": libraries,
        "machine": machine,
        "cell": {name: value for name, value in asdict(cell).items() if name not in NAMES},
        "profile": profile,
        "threads": threads,
        **{name: provenance[name] for name in HASHED if name in provenance},
    }
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
