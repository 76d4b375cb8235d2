"""Several methods at several places of one model, as one method of a suite.

Source: none; for example CrossGET's paper (§4) runs its method in both towers, and many systems
prune early and merge late.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from bench.core import BenchError, register
from bench.core.kinds import Composition


@register("compose", source="several methods at once", acts="where its parts do")
@dataclass(frozen=True)
class Compose(Composition):
    """Runs the methods listed in `of`, each where and as much as its own parameters say.

    In a suite, where the outer list is the sweep:
    `{name: compose, of: [[{name: evit, keep_rate: 0.7, layers: [2]}, {name: tome, r: 4}]]}`.
    """

    of: Sequence[Mapping[str, Any]] = field(default=())

    budget: ClassVar[dict[str, Any]] = {"r": 0}

    def __post_init__(self) -> None:
        """Check the entries.

        Raises:
            BenchError: an entry names no method.
        """
        for entry in self.of:
            if not isinstance(entry, Mapping) or "name" not in entry:
                raise BenchError(f"compose: each entry of `of` is {{name: METHOD, ...}}: {entry!r}")

    @property
    def parts(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """The methods and their arguments."""
        return [
            (entry["name"], {k: v for k, v in entry.items() if k != "name"}) for entry in self.of
        ]
