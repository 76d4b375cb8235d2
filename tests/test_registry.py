"""The hash of a method's sources sees every file that the method is made of."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.core import registry

METHOD = '''
from dataclasses import dataclass
from bench.core import Reducer
from bench.core.registry import register
from toy_methods.ranking import best

@register("toy-hash", source="nobody")
@dataclass(frozen=True)
class Toy(Reducer):
    """Does nothing."""
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with a method, a module it imports from, and one it does not."""
    folder = tmp_path / "toy_methods"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "method.py").write_text(METHOD)
    (folder / "ranking.py").write_text("def best(): ...\n")
    (folder / "other.py").write_text("")
    registry.methods()  # all others first: the path is searched for this one alone
    monkeypatch.syspath_prepend(tmp_path)
    __import__("toy_methods.method")
    yield folder
    registry._METHODS.pop("toy-hash")
    for name in [name for name in sys.modules if name.split(".")[0] == "toy_methods"]:
        del sys.modules[name]


@pytest.mark.parametrize("edited", ["method.py", "ranking.py"])
def test_an_edit_anywhere_in_a_method_changes_its_hash(toy: Path, edited: str) -> None:
    before = registry.source_hash("toy-hash")
    (toy / "other.py").write_text("# edited")
    assert registry.source_hash("toy-hash") == before
    (toy / edited).write_text("# edited")
    assert registry.source_hash("toy-hash") != before


def test_an_edit_of_crossgets_package_changes_its_hash_alone(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: registry.source_hash(name) for name in ("crossget", "random")}
    read = Path.read_bytes

    def edited(path: Path) -> bytes:
        return read(path) + (
            b"\nEDITED = True\n" if path.is_relative_to(repo / "crossget") else b""
        )

    monkeypatch.setattr(Path, "read_bytes", edited)
    assert registry.source_hash("crossget") != before["crossget"]
    assert registry.source_hash("random") == before["random"]
