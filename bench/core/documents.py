"""Documents that a user hands in, YAML and JSON: read within limits, every mistake one line.

A line names the file, the place in it and what is wrong. Nothing in a document is executed, and no
document, however deep, large or cyclic, takes more than a moment or the interpreter down.
"""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any, Never

import yaml

from bench.core.errors import BenchError

YAML_BYTES = 1 << 18  # of a suite; PyYAML reads about 100 kB a second
JSON_BYTES = 1 << 30  # of a data set's annotations
DEPTH = 50  # of lists and mappings in each other
NODES = 20_000  # of a YAML document with its aliases written out
_TAGS = frozenset({"str", "int", "float", "bool", "null", "map", "seq", "merge"})
_HALF_OF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


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
        raise BenchError(f"cannot read {path} ({reason})") from None


def read_json(path: Path, limit: int = JSON_BYTES) -> Any:
    """Return the value in a JSON file; raises BenchError as `read_text` and `parse_json` do."""
    return parse_json(read_text(path, limit), str(path))


def parse_json(text: str, source: str) -> Any:
    """Return a JSON document's value; `source` is the file name that errors begin with.

    Raises:
        BenchError: not JSON (NaN and Infinity are not), nested too deep, or text with half of a
            surrogate pair, which no file can hold.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant)
        if _HALF_OF_A_PAIR.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise BenchError(f"{source}:{error.lineno}: not valid JSON: {error.msg}") from None
    except RecursionError:
        raise BenchError(f"{source}: lists and mappings are nested too deep") from None
    except UnicodeEncodeError:
        raise BenchError(f"{source}: a text has half of a surrogate pair (\\ud800)") from None
    except ValueError as error:  # a number of thousands of digits, or one of the constants
        raise BenchError(f"{source}: not valid JSON: {str(error).split(';')[0]}") from None
    return value


def _no_constant(name: str) -> Never:
    raise ValueError(f"{name} is no number of JSON")


def read_yaml(path: Path) -> tuple[Any, yaml.Node | None]:
    """Return the value in a YAML file and its node; raises BenchError as `parse_yaml` does."""
    return parse_yaml(read_text(path, YAML_BYTES), path.name)


def parse_yaml(text: str, source: str) -> tuple[Any, yaml.Node | None]:
    """Return a YAML document's value and its node, which knows the lines.

    Raises:
        BenchError: not YAML, a tag beyond those of JSON's values, a key given twice, or more than
            `DEPTH` levels or `NODES` nodes with all aliases written out.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, None
        _check(node, source)
        return loader.construct_document(node), node
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BenchError(f"{source}:{line}: not valid YAML: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, max(error.position, 0)) + 1
        raise BenchError(f"{source}:{line}: not valid YAML: a control character") from None
    except RecursionError:
        raise BenchError(f"{source}: lists and mappings are nested too deep") from None
    except ValueError as error:  # a number of thousands of digits
        raise BenchError(f"{source}: not valid YAML: {str(error).split(';')[0]}") from None


def yaml_value(text: str, source: str) -> Any:
    """Return the value of a command-line option written as YAML, such as `[3, 6, 9]` or `true`."""
    return parse_yaml(text, source)[0]


def _check(node: yaml.Node, source: str) -> None:
    """Raise BenchError where a document is no tree of plain values, or too large a one."""
    sizes: dict[int, int] = {}  # nodes below each node, aliases written out

    def size(node: yaml.Node, above: tuple[int, ...]) -> int:
        line = node.start_mark.line + 1
        if id(node) in above:
            raise BenchError(f"{source}:{line}: an alias stands within its own anchor")
        if len(above) > DEPTH:
            raise BenchError(f"{source}:{line}: lists and mappings are nested too deep")
        if node.tag.removeprefix("tag:yaml.org,2002:") not in _TAGS:
            raise BenchError(f"{source}:{line}: a value of the kind {node.tag!r}: write plain text")
        if id(node) not in sizes:
            inner = (*above, id(node))
            sizes[id(node)] = 1 + sum(size(part, inner) for part in _parts(node, source))
        if sizes[id(node)] > NODES:
            raise BenchError(f"{source}:{line}: more than {NODES:,} values, aliases written out")
        return sizes[id(node)]

    size(node, ())


def _parts(node: yaml.Node, source: str) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if not isinstance(node, yaml.MappingNode):
        return []
    keys = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise BenchError(f"{source}:{key.start_mark.line + 1}: a key is no text")
        if key.value in keys:
            raise BenchError(f"{source}:{key.start_mark.line + 1}: '{key.value}' is there twice")
        keys.add(key.value)
    return [part for pair in node.value for part in pair]
