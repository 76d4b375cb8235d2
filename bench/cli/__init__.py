"""The command line."""

from __future__ import annotations

from bench.cli.app import main as main
from bench.cli.app import outcome as outcome
