"""What every test shares: no network, no display, one thread."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before any library reads them. A test that needs a download is a test that fails offline.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Their asserts say what they compared, as those of tests do.
pytest.register_assert_rewrite("golden_checks")


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run beside each other, which a timing would notice, and be taken again and again."""
    from bench.measure import load

    monkeypatch.setattr(load, "look", lambda: 0.0)
    monkeypatch.setattr(load, "disturbance", lambda *arguments: None)


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parents[1]
