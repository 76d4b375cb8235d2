"""Documents that a user hands in, YAML and JSON: read within limits, every mistake one line.

A line names the file, the place in it and what is wrong. Nothing in a document is executed, and no
document, however deep, large or cyclic, takes more than a moment or the interpreter down.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Never

import yaml

from bench.core.errors import BenchError

YAML_BYTES = 1 << 18  # of a suite; PyYAML reads about 100 kB a second
JSON_BYTES = 1 << 30  # of a data set's annotations
DEPTH = 50  # of lists and mappings in each other
NODES = 20_000  # of a YAML document with its aliases written out
WHOLE = 1 << 63  # whole numbers of YAML are smaller; a hexadecimal one may have any length
_TAGS = frozenset({"str", "int", "float", "bool", "null", "map", "seq", "merge"})
_HALF_OF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
_TOO_DEEP = "lists and mappings are nested too deep"


class _Loader(yaml.SafeLoader):
    """YAML's core schema: what looks like a date is text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_text(path: Path, limit: int = JSON_BYTES) -> str:
    """Return the text of a regular UTF-8 file of at most `limit` bytes.

    Raises:
        BenchError: no such file, a folder or pipe, no permission, too large, or not UTF-8.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BenchError(f"{path} is no regular file: name a text file")
        if status.st_size > limit:
            raise BenchError(f"{path} has {status.st_size:,} bytes, at most {limit:,} are read")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise BenchError(f"{path}:{line}: not UTF-8 text: save it as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise BenchError(f"cannot read {path} ({reason}): name another file") from None


# --- JSON ----------------------------------------------------------------------------------------


def read_json(path: Path, limit: int = JSON_BYTES) -> Any:
    """Return the value in a JSON file; raises BenchError as `read_text` and `parse_json` do."""
    return parse_json(read_text(path, limit), str(path))


def parse_json(text: str, source: str, line: int = 1) -> Any:
    """Return a JSON document's value.

    Args:
        text: the document.
        source: the file name that errors begin with.
        line: the document's first line in that file.

    Raises:
        BenchError: not JSON (NaN and Infinity are not), a key given twice, more than `DEPTH`
            levels, or text with half of a surrogate pair, which no file can hold.
    """
    try:
        value = json.loads(
            text, parse_constant=_no_constant, parse_float=_float, object_pairs_hook=_mapping
        )
        if _HALF_OF_A_PAIR.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        _check_depth(value)
    except json.JSONDecodeError as error:
        at = f"{source}:{error.lineno + line - 1}"
        raise BenchError(f"{at}: not valid JSON: {error.msg}: mend it or get it again") from None
    except RecursionError:
        raise BenchError(f"{source}:{line}: {_TOO_DEEP}") from None
    except UnicodeEncodeError:
        raise BenchError(
            f"{source}:{line}: a text has half of a surrogate pair (\\ud800)"
        ) from None
    except ValueError as error:  # a number of thousands of digits, or of the functions below
        reason = str(error).split(";")[0]
        raise BenchError(f"{source}:{line}: {reason}: mend it or get it again") from None
    return value


def parse_json_lines(text: str, source: str) -> list[Any]:
    """Return the values of a document with one JSON value a line; blank lines are none."""
    lines = enumerate(text.split("\n"), 1)  # splitlines() also splits within JSON's texts
    return [parse_json(line, source, number) for number, line in lines if line.strip()]


def _no_constant(name: str) -> Never:
    raise ValueError(f"{name} is no number of JSON")


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError("a number is too large")
    return value


def _mapping(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} is there twice")
    return mapping


def _check_depth(value: Any) -> None:
    level, kinds = [[value]], (dict, list)
    for _ in range(DEPTH + 2):
        parts = (part.values() if type(part) is dict else part for part in level)
        level = [inner for part in parts for inner in part if type(inner) in kinds]
        if not level:
            return
    raise RecursionError


# --- YAML ----------------------------------------------------------------------------------------


def parse_yaml(text: str, source: str) -> tuple[Any, yaml.Node | None]:
    """Return a YAML document's value and its node, which knows the lines.

    Raises:
        BenchError: not YAML, a tag beyond those of JSON's values, a number that is not finite or
            has more than 64 bits, a key given twice, or more than `DEPTH` levels or `NODES` nodes
            with all aliases written out.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, None
        _Check(loader, source).size(node)
        return loader.construct_document(node), node
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BenchError(f"{source}:{line}: not valid YAML: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, max(error.position, 0)) + 1
        raise BenchError(f"{source}:{line}: a control character: take it out") from None
    except RecursionError:
        raise BenchError(f"{source}:{loader.line + 1}: {_TOO_DEEP}") from None
    except ValueError as error:  # an escape beyond Unicode
        raise BenchError(f"{source}:{loader.line + 1}: not valid YAML: {error}") from None


def yaml_value(text: str, source: str) -> Any:
    """Return the value of a command-line option written as YAML, such as `[3, 6, 9]` or `true`."""
    return parse_yaml(text, source)[0]


class _Check:
    """Sees that a document is a tree of plain values, and not too large a one."""

    def __init__(self, loader: _Loader, source: str) -> None:
        """Check what `loader` composed from the file that errors begin with."""
        self.loader, self.source = loader, source
        self.sizes: dict[int, int] = {}  # nodes below each node, aliases written out

    def size(self, node: yaml.Node, above: tuple[int, ...] = ()) -> int:
        """Return how many nodes a node is; raises BenchError where something is wrong in it."""
        if id(node) in above:
            raise self.error(node, "an alias stands within its own anchor: write the value out")
        if len(above) > DEPTH:
            raise self.error(node, _TOO_DEEP)
        if id(node) not in self.sizes:
            inner = (*above, id(node))
            self.sizes[id(node)] = 1 + sum(self.size(part, inner) for part in self.parts(node))
        if self.sizes[id(node)] > NODES:
            raise self.error(node, f"more than {NODES:,} values, aliases written out")
        return self.sizes[id(node)]

    def parts(self, node: yaml.Node) -> list[yaml.Node]:
        """Return the nodes right in a node, which is seen to be fine itself."""
        if node.tag.removeprefix("tag:yaml.org,2002:") not in _TAGS:
            raise self.error(node, f"a value of the kind {node.tag!r}: write plain text")
        if isinstance(node, yaml.ScalarNode):
            self.scalar(node)
        elif isinstance(node, yaml.SequenceNode):
            return list(node.value)
        elif isinstance(node, yaml.MappingNode):
            self.keys([key for key, _ in node.value])
            return [part for pair in node.value for part in pair]
        return []

    def keys(self, keys: Sequence[yaml.Node]) -> None:
        """See that keys are plain values, each there once."""
        seen = set()
        for key in keys:
            if not isinstance(key, yaml.ScalarNode):
                raise self.error(key, "a key is a list or a mapping: write text")
            if key.value in seen:
                raise self.error(key, f"'{key.value}' is there twice: keep one")
            seen.add(key.value)

    def scalar(self, node: yaml.ScalarNode) -> None:
        """See that a value can be made, and is one that a file can hold and a program count by."""
        try:
            node.value.encode()
            value = None if node.tag.endswith(":merge") else self.loader.construct_object(node)
        except UnicodeEncodeError:
            raise self.error(node, "a text has half of a surrogate pair (\\ud800)") from None
        except (ValueError, LookupError):  # thousands of digits, or a tag that does not fit
            raise self.error(node, f"not of the kind {node.tag.rpartition(':')[2]}") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise self.error(node, f"{node.value} is no finite number")
        if isinstance(value, int) and abs(value) >= WHOLE:
            raise self.error(node, "a number of more than 64 bits")

    def error(self, node: yaml.Node, message: str) -> BenchError:
        """Return an error that begins with the place of a node."""
        return BenchError(f"{self.source}:{node.start_mark.line + 1}: {message}")
