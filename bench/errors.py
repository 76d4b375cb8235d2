"""The one exception that users see: a clear line that names the fix."""

from __future__ import annotations


class BenchError(Exception):
    """A mistake the user can mend; the command line prints it and exits with code 2."""


class Unsupported(BenchError):
    """A method that cannot run on this model, said in one line; recorded, not retried."""
