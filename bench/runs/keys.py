"""The key of a cell: a hash over everything that its result depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import tasks
from bench.core import registry
from bench.measure.profiles import Profile
from bench.models import catalogue
from bench.models.files import hash_files
from bench.records.cell_keys import key_from
from bench.records.record import Cell
from bench.records.sources import family_hash, library_versions, measurement_hash
from bench.runs.session import parameters, threads_of
from bench.tasks import Task


def provenance_of(cell: Cell, weights: str | None, task: Task | None) -> dict[str, Any]:
    """Return the hashes of the code, weights and data that a cell is measured with.

    Args:
        cell: what is measured.
        weights: the hash of the model's weights; None where they cannot be had.
        task: None where no accuracy is taken.
    """
    values = [value for _, value in sorted(parameters(cell).items())]
    files = [Path(value) for value in values if isinstance(value, str | Path)]
    files = [file for file in files if file.is_file()]
    family = catalogue.family_of(cell.model)
    return {
        "measurement_sha256": measurement_hash(),
        "family": family,
        "family_sha256": family_hash(family),
        "weights_sha256": weights,
        "method_source_sha256": registry.source_hash(cell.method, cell.params),
        "task_version": task.version if task else None,
        **_not_none("task_source_sha256", tasks.source_hash(cell.task) if task else None),
        **_not_none("files_sha256", hash_files(files) if files else None),
    }


def _not_none(key: str, value: str | None) -> dict[str, str]:
    return {} if value is None else {key: value}


def key_of(cell: Cell, profile: Profile, machine: str, provenance: Mapping[str, str | None]) -> str:
    """Return the sha256 over everything that a result depends on; the suite's name is not.

    `provenance` holds the hashes, see `provenance_of`.
    """
    return key_from(
        cell,
        libraries=library_versions(),
        machine=machine,
        profile=dataclasses.asdict(profile),
        threads=threads_of(profile),
        provenance=provenance,
    )
