"""What every test shares: no network, no display, one thread."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Server

# Before any library reads them. A test that needs a download is a test that fails offline.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Their asserts say what they compared, as those of tests do.
pytest.register_assert_rewrite("golden_checks")


def pytest_collection_finish() -> None:
    """Spare collections of garbage, of which runs make many, what is imported and stays."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def undisturbed() -> Iterator[None]:
    """Tests run beside each other, which a timing would notice, and be taken again and again.

    Of the session, so that it holds in fixtures of modules as well.
    """
    from bench.measure import load

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "look", lambda: 0.0)
        patch.setattr(load, "disturbance", lambda *arguments: None)
        yield


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def commands() -> Iterator[Server]:
    """Runs commands that begin with the libraries imported."""
    with Server() as server:
        yield server
