"""Bad documents, YAML and JSON: every kind in every place."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.inputs.judge import Bad

RUN = ("run", "--results", ".", "--profile", "cpu")
DEEP = 100_000
DIGITS = "9" * 5000

# --- YAML: the suite -----------------------------------------------------------------------------

SUITE = """\
description: @0
models:
  - {name: @1, tasks: [@2]}
methods:
  - {name: @3, r: @4}
profiles: @5
limit: @6
"""
PLACES = ("a suite", "embedded:vit-fashion", "fashion-mnist", "tome", "[8]", "cpu", "8")


def _multiplied(form: str) -> str:
    """Return a list whose items each hold the one before ten times."""
    pairs = zip("abcdefgh", "bcdefghi", strict=True)
    return "[&a {x: 1}, " + ", ".join(form.format(b, f"*{a}," * 10) for a, b in pairs) + "]"


# What is never a value, wherever it stands; `True`: the line is the value's own.
VALUES: dict[str, tuple[str | bytes, bool]] = {
    "NUL": ("a\0b", True),
    "bell": ("'a\x07b'", True),
    "escape": ('"a\x1bb"', True),
    "delete": ("a\x7fb", True),
    "C1 control": ("a\x81b", True),
    "noncharacter": ("a\uffffb", True),
    "latin-1": (b"caf\xe9", True),
    "cut UTF-8": (b"a\xe2\x82", True),
    "surrogates as UTF-8": (b"\xed\xa0\x80", True),
    "half of a pair": ('"\\ud800"', True),
    "beyond Unicode": ('"\\U00110000"', False),
    "unknown escape": ('"\\q"', True),
    "timestamp": ("!!timestamp 2024-01-01", True),
    "set": ("!!set {a, b}", True),
    "binary": ("!!binary aGk=", True),
    "ordered mapping": ("!!omap [a: 1]", True),
    "pairs": ("!!pairs [a: 1]", True),
    "value": ("!!value x", True),
    "Python call": ("!!python/object/apply:os.mkdir [made]", True),
    "Python name": ("!!python/name:os.mkdir", True),
    "own tag": ("!mine x", True),
    "unknown handle": ("!no!mine x", True),
    "int of text": ("!!int many", True),
    "int of nothing": ('!!int ""', True),
    "int of a sign": ('!!int "-"', True),
    "float of text": ("!!float much", True),
    "bool of text": ("!!bool maybe", True),
    "text of a list": ("!!str [a]", True),
    "mapping of a list": ("!!map [a]", True),
    "list of a mapping": ("!!seq {a: 1}", True),
    "5,000 digits": (DIGITS, True),
    "-5,000 digits": (f"-{DIGITS}", True),
    "hexadecimal of 5,000 digits": (f"0x{DIGITS}", True),
    "binary number of 5,000 digits": (f"0b{'1' * 5000}", True),
    "65 bits": (str(1 << 64), True),
    "nan": (".nan", True),
    "inf": (".inf", True),
    "-inf": ("-.inf", True),
    "1e400": ("1.0e+400", True),
    "list in itself": ("&a [*a]", True),
    "mapping in itself": ("&a {b: *a}", True),
    "two in each other": ("&a [&b {c: [*a, *b]}]", True),
    "unknown alias": ("*nowhere", True),
    "a billion laughs": (_multiplied("&{} [{}]"), True),
    "a billion keys": (_multiplied("&{} {{k: [{}]}}"), True),
    "a billion merges": (_multiplied("&{} {{<<: [{}]}}"), True),
    "60 lists": ("[" * 60 + "]" * 60, True),
    "100,000 lists": ("[" * DEEP + "]" * DEEP, True),
    "60 mappings": ("{a: " * 60 + "}" * 60, True),
    "60,000 mappings": ("{a: " * 60_000, True),
    "open list": ("[a", False),
    "open mapping": ("{a: 1", False),
    "open text": ("'a", False),
    "closed list": ("[a]]", False),
    "tab": ("\ta: b:\tc", False),
    "at sign": ("@a", True),
    "backtick": ("`a", True),
    "percent": ("%a", True),
    "key twice": ("{a: 1, b: 2, a: 3}", True),
    "key that is a list": ("{[a]: 1}", True),
    "key that is a mapping": ("{{a: 1}: 2}", True),
    "merged number": ("{<<: 5}", True),
    "merged twice": ("{<<: {a: 1}, <<: {b: 1}}", True),
}
WHOLE: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n\n",
    "comment": b"# nothing\n",
    "BOM alone": b"\xef\xbb\xbf",
    "null": b"null\n",
    "number": b"5\n",
    "text": b"models\n",
    "list": b"- models\n- methods\n",
    "two documents": b"a: 1\n---\nb: 2\n",
    "number as key": b"1: a\nmodels: [x]\nmethods: [tome]\n",
    "null as key": b"~: a\nmodels: [x]\nmethods: [tome]\n",
    "true as key": b"true: a\nmodels: [x]\nmethods: [tome]\n",
    "UTF-16": SUITE.encode("utf-16"),
    "UTF-16 big": b"\xfe\xff" + SUITE.encode("utf-16-be"),
    "UTF-16 without BOM": SUITE.encode("utf-16-le"),
    "UTF-32": SUITE.encode("utf-32"),
    "too large": b"# " + b"x" * (1 << 18),
    "many keys": b"".join(b"k%d: 1\n" % i for i in range(12_000)),
    "picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "page": b"<!DOCTYPE html><html><body>404: Not Found</body></html>\n",
    "indent": b"models:\n  - a\n - b\n",
    "directive": b"%YAML 9.9\n--- {}\n",
}
WRONG = {
    "number": "5",
    "float": "1.5",
    "bool": "true",
    "null": "null",
    "text": "x y",
    "digits": "'12'",
    "list": "[1]",
    "lists": "[[a]]",
    "mapping": "{a: 1}",
    "date": "2024-01-01",
    "minus one": "-1",
}
_NO_TEXT = {"number", "float", "bool", "null", "list", "lists", "mapping", "minus one"}
_NO_LIST = set(WRONG) - {"list", "lists"}
_NO_INT = set(WRONG) - {"number"}
KEYS: dict[str, set[str]] = {  # which of these are wrong at which key
    "description": _NO_TEXT,
    "models": set(WRONG),
    "tasks": set(WRONG),
    "methods": set(WRONG),
    "profiles": _NO_TEXT,
    "dtypes": set(WRONG) - {"null"},
    "backends": set(WRONG) - {"null"},
    "batch_sizes": _NO_INT - {"null", "list"},
    "limit": _NO_INT - {"null"},
    "precision": set(WRONG) - {"number", "float", "null"},
    "latency_seconds": set(WRONG) - {"number", "float"},
    "random_weights": set(WRONG) - {"bool"},
    "missing": set(WRONG),
    "seed": _NO_INT - {"minus one"},
}
MODEL_KEYS = {
    "name": _NO_TEXT,
    "tasks": _NO_LIST - {"null"} | {"list", "lists"},
    "random_weights": set(WRONG) - {"bool", "null"},
    "baseline": set(WRONG) - {"bool"},
    "data": _NO_TEXT,
}
METHOD_KEYS = {"name": _NO_TEXT, "models": _NO_LIST - {"null"} | {"list", "lists"}}


def _suite(place: int = -1, value: str | bytes = b"") -> bytes:
    text = SUITE.encode()
    for i, usual in enumerate(PLACES):
        put = value if i == place else usual
        text = text.replace(b"@%d" % i, put.encode() if isinstance(put, str) else put)
    return text


def _of_suite(name: str, text: str | bytes, line: int | None = None) -> Bad:
    place = f"s.yaml:{line}: " if line else "s.yaml"
    return Bad(name, (*RUN, "--suite", "./s.yaml"), {"s.yaml": text}, names=(place,))


def suites() -> Iterator[Bad]:
    """Suites that are no YAML, or YAML of more than plain values."""
    for kind, (value, here) in VALUES.items():
        for i, place in enumerate(("description", "model", "task", "method", "r", "profile")):
            line = SUITE.split(f"@{i}")[0].count("\n") + 1
            yield _of_suite(f"{kind} as {place}", _suite(i, value), line if here else None)
    for kind, text in WHOLE.items():
        yield _of_suite(f"a suite: {kind}", text)


def wrong_types() -> Iterator[Bad]:
    """A wrong type at each key of a suite, of its models and of its methods."""
    base = "models: [embedded:vit-fashion]\nmethods: [tome]\n"
    for key, wrong in KEYS.items():
        for kind in sorted(wrong):
            text = "".join(line for line in base.splitlines(True) if not line.startswith(f"{key}:"))
            line = text.count("\n") + 1
            yield _of_suite(f"{kind} as {key}", f"{text}{key}: {WRONG[kind]}\n", line)
    for key, wrong in MODEL_KEYS.items():
        for kind in sorted(wrong):
            name = "" if key == "name" else "name: embedded:vit-fashion, "
            text = f"methods: [tome]\nmodels:\n  - {{{name}{key}: {WRONG[kind]}}}\n"
            yield _of_suite(f"{kind} as a model's {key}", text, 3)
    for key, wrong in METHOD_KEYS.items():
        for kind in sorted(wrong):
            name = "" if key == "name" else "name: tome, "
            text = f"models: [embedded:vit-fashion]\nmethods:\n  - {{{name}{key}: {WRONG[kind]}}}\n"
            yield _of_suite(f"{kind} as a method's {key}", text, 3)


def options() -> Iterator[Bad]:
    """Values of command-line options that are written as YAML."""
    cost = ("cost", "timm:vit_tiny_patch16_224", "--method", "pitome")
    train = ("train", "embedded:vit-fashion", "--method", "pitome")
    for kind, (value, _) in VALUES.items():
        if isinstance(value, str) and "\0" not in value and len(value) < DEEP:
            for command in (cost, train):
                arguments = (*command, "--param", f"margin={value}")
                yield Bad(f"{kind} for {command[0]}", arguments, names=("margin",))


# --- JSON ----------------------------------------------------------------------------------------

BROKEN: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n",
    "NUL": b"\0",
    "NULs": b"\0" * 4096,
    "control character": b'{"a": "b\x07"}',
    "line break in text": b'{"a": "b\nc"}',
    "latin-1": b'{"a": "caf\xe9"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "UTF-16 without BOM": '{"a": 1}'.encode("utf-16-le"),
    "cut in a mapping": b'{"a": 1,',
    "cut in a text": b'{"a": "b',
    "cut in a list": b'{"a": [1, 2',
    "comma too many": b'{"a": 1,}',
    "two values": b'{"a": 1} {"b": 2}',
    "single quotes": b"{'a': 1}",
    "comment": b'{"a": 1} // one',
    "no quotes": b"{a: 1}",
    "NaN": b'{"a": NaN}',
    "Infinity": b'[{"a": Infinity}]',
    "-Infinity": b'{"a": -Infinity}',
    "1e400": b'{"a": 1e400}',
    "5,000 digits": b'{"a": ' + DIGITS.encode() + b"}",
    "60 lists": b"[" * 60 + b"]" * 60,
    "100,000 lists": b"[" * DEEP + b"]" * DEEP,
    "60 mappings": b'{"a":' * 60 + b"1" + b"}" * 60,
    "100,000 mappings": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "open lists": b"[" * DEEP,
    "half of a pair": b'{"a": "\\ud800"}',
    "key twice": b'{"a": 1, "a": 2}',
    "page": b"<html>404: Not Found</html>",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "archive": b"\x1f\x8b\x08\0\0\0\0\0",
}
FORMS: dict[str, Any] = {
    "a number": 5,
    "a text": "x",
    "null": None,
    "true": True,
    "a list of numbers": [5],
    "a list of null": [None],
    "a list of lists": [[]],
}
VIT: dict[str, Any] = {
    "architectures": ["ViTForImageClassification"],
    "model_type": "vit",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
TIMM = {"architecture": "vit_tiny_patch16_224", "num_classes": 5, "model_args": {"depth": 1}}
TUNED = {"model": "embedded:vit-fashion", "method": "none", "budget": {}, "params": {}, "rank": 0}
QUESTIONS = {
    "data_subtype": "val2014",
    "questions": [{"question_id": 1, "image_id": 1, "question": "what?"}],
}
ANSWERS = {
    "annotations": [{"question_id": 1, "answers": [{"answer": "a"}], "answer_type": "other"}]
}
POPE = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "yes"}
NLVR2 = {"identifier": "dev-1-0-0", "label": "True", "sentence": "two dogs"}
KARPATHY = {"images": [{"filename": "a.jpg", "split": "test", "sentences": [{"raw": "a"}]}]}
NOCAPS = {
    "images": [{"id": 1, "file_name": "a.jpg"}],
    "annotations": [{"image_id": 1, "caption": "a"}],
}
COOP = {"train": [], "test": [["a.jpg", 0, "cat"]]}
Where = tuple[str, str, tuple[str, ...], dict[str, str | bytes]]


def _task(name: str, file: str, task: str, **others: Any) -> Where:
    model = ("--model", "embedded:clip-emoji", "--method", "none")
    more = {key: json.dumps(value) for key, value in others.items()}
    return name, file, (*RUN, *model, "--task", task), {"images/b.jpg": b"", **more}


def _model(name: str, file: str, *arguments: str, **others: Any) -> Where:
    more = {f"m/{key}.json": json.dumps(value) for key, value in others.items()}
    return name, f"m/{file}", arguments, more


_OF_MODEL = (*RUN, "--model", "./m", "--task", "cost", "--method", "none")
FILES: list[Where] = [
    _model("configuration", "config.json", "cost", "./m", "--method", "tome"),
    _model(
        "image processor", "preprocessor_config.json", "cost", "m", "--method", "tome", config=VIT
    ),
    _model("tokenizer", "tokenizer.json", *_OF_MODEL, config=VIT),
    _model("index", "model.safetensors.index.json", *_OF_MODEL, config=VIT),
    _model("index of timm", "model.safetensors.index.json", *_OF_MODEL, config=TIMM),
    _model("training", "training.json", *_OF_MODEL),
    _task("VQAv2 questions", "q.json", "vqav2:q.json:a.json:images", **{"a.json": ANSWERS}),
    _task("VQAv2 annotations", "a.json", "vqav2:q.json:a.json:images", **{"q.json": QUESTIONS}),
    _task("POPE", "p.json", "pope:p.json:images"),
    _task("NLVR2", "n.json", "nlvr2:n.json:images"),
    _task("Karpathy", "k.json", "karpathy:k.json:images"),
    _task("captions", "k.json", "caption-karpathy:k.json:images"),
    _task("re-ranking", "k.json", "rerank-karpathy:k.json:images"),
    _task("NoCaps", "c.json", "nocaps:c.json:images"),
    _task("CoOp", "d/split_zhou_D.json", "zeroshot:d"),
    ("record of a report", "r.json", ("report", "r.json", "--out", "o"), {}),
    ("record of a leaderboard", "r.json", ("leaderboard", "r.json", "--out", "o"), {}),
    ("record to submit", "r.json", ("submit", "r.json", "o"), {}),
    ("one of two records", "r.json", ("compare", "r.json", "r.json"), {}),
]


def _without(value: Any, *path: Any) -> str:
    """Return a document without one of its keys."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return json.dumps(copy)


def _lacking() -> Iterator[tuple[str, str, str]]:
    """Yield where a document is used, what it lacks, and the document."""
    documents: list[tuple[str, Any, list[tuple[Any, ...]]]] = [
        ("POPE", POPE, [("image",), ("text",), ("label",)]),
        ("NLVR2", NLVR2, [("identifier",), ("label",), ("sentence",)]),
        (
            "Karpathy",
            KARPATHY,
            [("images",), ("images", 0, "filename"), ("images", 0, "sentences")],
        ),
        ("captions", KARPATHY, [("images", 0, "sentences", 0, "raw"), ("images", 0)]),
        ("NoCaps", NOCAPS, [("images",), ("images", 0, "id"), ("images", 0, "file_name")]),
        ("NoCaps", NOCAPS, [("annotations", 0, "image_id"), ("annotations", 0, "caption")]),
        ("CoOp", COOP, [("test",), ("test", 0), ("test", 0, 2)]),
        ("training", TUNED, [("model",), ("method",), ("budget",), ("params",)]),
        ("index", {"weight_map": {}}, [("weight_map",)]),
        ("configuration", TIMM, [("architecture",)]),
    ]
    questions = [("data_subtype",), ("questions",), ("questions", 0)]
    questions += [("questions", 0, key) for key in QUESTIONS["questions"][0]]
    documents.append(("VQAv2 questions", QUESTIONS, questions))
    answers = [("annotations",), ("annotations", 0, "answers"), ("annotations", 0, "answer_type")]
    documents.append(("VQAv2 annotations", ANSWERS, [*answers, ("annotations", 0, "question_id")]))
    for place, document, paths in documents:
        for path in paths:
            yield place, ".".join(map(str, path)), _without(document, *path)


def json_files() -> Iterator[Bad]:
    """Files of JSON that are no JSON, of another form, or lack a key."""
    where = {name: (file, arguments, others) for name, file, arguments, others in FILES}
    for name, (file, arguments, others) in where.items():
        cases = {**BROKEN, **{kind: json.dumps(form).encode() for kind, form in FORMS.items()}}
        for kind, content in cases.items():
            yield Bad(f"{name}: {kind}", arguments, {**others, file: content}, names=(file,))
    for name, lacking, text in _lacking():
        file, arguments, others = where[name]
        yield Bad(f"{name} without {lacking}", arguments, {**others, file: text}, names=(file,))


def _wrong(value: dict[str, Any], **changes: Any) -> str:
    return json.dumps({**value, **changes})


def models() -> Iterator[Bad]:
    """Models' folders whose JSON says what cannot be."""
    cost = ("cost", "./m", "--method", "tome")
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size"):
        for value in ("x", None, [1], {}, -3, 10**12):
            files = {"m/config.json": _wrong(VIT, **{key: value})}
            yield Bad(f"{key} is {value!r}", cost, files, names=("m/config.json",))
    for key, values in (("model_type", (5, "nothing", None)), ("architectures", (5, [5]))):
        for value in values:
            files = {"m/config.json": _wrong(VIT, **{key: value})}
            yield Bad(f"{key} is {value!r}", cost, files, names=("m",))
    timms: list[dict[str, Any]] = [
        {"architecture": 5},
        {"architecture": "x"},
        {"model_args": 5},
        {"model_args": {"no": 1}},
        {"model_args": {"depth": "x"}},
        {"num_classes": "x"},
        {"pretrained_cfg": 5},
        {"pretrained_cfg": {"input_size": 3}},
    ]
    for changes in timms:
        files = {"m/config.json": _wrong(TIMM, **changes)}
        yield Bad(f"timm with {changes}", cost, files, names=("m/config.json",))
    for shards in ({}, [], 5, {"a": 5}, {"a": ""}, {"a": "../b.safetensors"}, {"a": "/etc/passwd"},
                   {"a": "absent.safetensors"}, {"a": "b\0c"}):  # fmt: skip
        index = {"m/model.safetensors.index.json": json.dumps({"weight_map": shards})}
        files = {"m/config.json": json.dumps(VIT), **index}
        yield Bad(f"index of {shards}", _OF_MODEL, files, names=("m/",))
    for key in ("model", "method", "budget", "params", "rank"):
        for value in (5.5, None, [1]):
            files = {"m/training.json": _wrong(TUNED, **{key: value})}
            yield Bad(f"training with {key} {value}", _OF_MODEL, files, names=("m/training.json",))
    for value in ("./m", "m", "m/../m"):
        files = {"m/training.json": _wrong(TUNED, model=value)}
        yield Bad(f"a model that began as itself: {value}", _OF_MODEL, files, names=("training",))
    two = {
        "m/training.json": _wrong(TUNED, model="./n"),
        "n/training.json": _wrong(TUNED, model="m"),
    }
    yield Bad("two models that began as each other", _OF_MODEL, two, names=("training",))


def special_files() -> Iterator[Bad]:
    """What is no regular file, or cannot be read as one."""

    def make(path: str, how: Callable[[Path], object]) -> Callable[[Path], object]:
        def prepare(folder: Path) -> None:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            how(folder / path)

        return prepare

    kinds: dict[str, Callable[[Path], object]] = {
        "pipe": os.mkfifo,
        "folder": Path.mkdir,
        "dangling link": lambda path: path.symlink_to("nowhere"),
        "link to itself": lambda path: path.symlink_to(path.name),
        "endless device": lambda path: path.symlink_to("/dev/zero"),
    }
    for kind, how in kinds.items():
        suite = (*RUN, "--suite", "./s.yaml")
        yield Bad(f"suite: {kind}", suite, prepare=make("s.yaml", how), names=("s.yaml",))
        for name, file, arguments, others in FILES:
            if "record" not in name or kind in ("pipe", "endless device"):
                if kind.endswith(("link", "itself")) and file.startswith("m/"):
                    continue  # as if there were no such file: another case
                yield Bad(f"{name}: {kind}", arguments, others, make(file, how), (Path(file).name,))


CORPUS = [
    *suites(), *wrong_types(), *options(), *json_files(), *models(), *special_files(),
]  # fmt: skip
