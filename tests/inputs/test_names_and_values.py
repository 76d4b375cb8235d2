"""Bad names and values, by kind: each is refused at once, in one line, with nothing written."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import folders
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judge import Bad, faults_of

from bench import tasks
from bench.core import registry
from bench.core.errors import BenchError, near_miss, printable
from bench.core.numbers import LARGEST, by_tower, share, whole
from bench.core.parameters import check_request, own
from bench.core.schedules import as_schedule
from bench.measure import profiles
from bench.models import catalogue
from bench.runs import budgets, spec
from bench.runs.options import budget

VIT = "../vit"  # a ViT of 2 blocks and 64 patches, beside each input's own folder
RUN = ("run", "--model", VIT, "--profile", "cpu", "--batch", "1", "--seconds", "0.02")

# --- names ---------------------------------------------------------------------------------------

NAMES = {
    "an empty name": "",
    "a blank name": "  ",
    "a line break": "a\nb",
    "a control character": "\x1b[31mred",
    "NUL": "a\0b",
    "half of a surrogate pair": "x\udcff",
    "markup": "<b>x</b>",
    "a folder above": "../../no/such",
    "a hub id above": "hf:../../etc",
    "an id of three parts": "hf:a/b/c",
    "a doubled slash": "foo//bar",
    "5,000 characters": "x" * 5000,
    "5,000 parts": "a/" * 5000,
    "nobody's home": "~nobody-here/x",
    "an unknown name": "no-such-thing",
    "nothing behind a colon": "timm:",
    "nothing behind an at": "timm:vit@",
}
PLACES: dict[str, tuple[str, ...]] = {
    "model": ("run", "--model", "NAME"),
    "random": ("run", "--model", "NAME", "--random-weights"),
    "task": ("run", "--model", VIT, "--task", "NAME"),
    "method": (*RUN, "--method", "NAME"),
    "suite": ("run", "--suite", "NAME"),
    "narrowed": ("run", "--suite", "quick", "--method", "NAME"),
    "profile": ("run", "--model", VIT, "--profile", "NAME"),
    "dtype": (*RUN, "--dtype", "NAME"),
    "backend": (*RUN, "--backend", "NAME"),
    "tower": (*RUN, "--method", "tome", "--r", "NAME=2"),
    "cost": ("cost", "NAME"),
    "cost's method": ("cost", "vit-base-patch16-224", "--method", "NAME"),
    "cost's parameter": ("cost", "vit-base-patch16-224", "--method", "pitome", "--param", "NAME=1"),
    "check": ("check", "NAME"),
    "train": ("train", "NAME", "--method", "none", "--out", "out"),
    "train's method": ("train", VIT, "--method", "NAME", "--out", "out"),
    "train's data": ("train", VIT, "--method", "none", "--data", "NAME", "--out", "out"),
    "list": ("list", "NAME"),
    "new": ("new", "NAME"),
}


def names() -> Iterator[Bad]:
    """Every bad name in every place that takes one."""
    for what, name in NAMES.items():
        for place, arguments in PLACES.items():
            asked = [argument.replace("NAME", name) for argument in arguments]
            if place == "new" and what == "an unknown name":
                continue  # which serves
            yield Bad(f"{what} as {place}", asked)
    for machine in ("", " ", "a/b", "..", "x" * 300, "a\nb", "a\0b"):
        yield Bad(f"machine {machine[:9]!r}", [*RUN, "--machine", machine], names=["--machine"])


SUITE = {"models": [VIT], "methods": ["tome"], "profiles": "cpu"}


def names_in_suites() -> Iterator[Bad]:
    """Bad names at each place of a suite: the line is named."""
    for what, name in NAMES.items():
        if what in ("a control character", "NUL", "half of a surrogate pair"):
            continue  # of which YAML has its own to say
        for key, value in {
            "models": [name],
            "tasks": [name],
            "methods": [name],
            "profiles": [name],
            "dtypes": [name],
            "backends": [name],
        }.items():
            yield _suite(f"{what} in {key}", SUITE | {key: value}, key)
        entries = {
            "a parameter": {"name": "tome", name: 1},
            "a model of a method": {"name": "tome", "models": [name]},
            "a tower": {"name": "tome", "r": {name: 2}},
            "a part": {"name": "compose", "of": [[{"name": name}]]},
            "a variant": {"name": "pitome", "variant": name},
            "a file": {"name": "dynamicvit", "predictor": name},
        }
        for place, entry in entries.items():
            yield _suite(f"{what} as {place}", SUITE | {"methods": [entry]}, "methods")


def _suite(name: str, suite: dict[str, object], *keys: str) -> Bad:
    """A bad suite of one line a key: the message must begin with the line of the last key."""
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in suite.items())
    text = text.replace("NaN", ".nan").replace("Infinity", ".inf")  # as YAML writes them
    line = list(suite).index(keys[-1]) + 1 if keys[-1] in suite else 1
    return Bad(name, ["run", "--suite", "s.yaml"], {"s.yaml": text}, names=[f"s.yaml:{line}: "])


# --- values --------------------------------------------------------------------------------------

NO_NUMBERS = ("nan", "inf", "-inf", "1e400", "-1", "", " ", "abc", "9" * 5000, "1;2", "\0", "--")
VALUES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "--r": (
        (*RUN, "--method", "tome"),
        (*NO_NUMBERS, "1.5", "10000000000000000000000000000000", "1000000000", "8,8,8", "8,,4",
         "vision=2,vision=1", "visoin=2", "text=2", "vision=", "=2", "vision=2=1", "vision=2,1",
         "vision=-1", "vision=1/1/1", "2/x", "0x4"),
    ),
    "--keep-rate": (
        (*RUN, "--method", "evit", "--method", "topk"),
        (*NO_NUMBERS, "1.5", "0", "0.0", "0.5,0.7,0.9,0.9", "vision=nan", "vision=0.5,vision=0.7",
         "vision=0.5/2", "text=0.5", "0.5/inf", "1e-400"),
    ),
    "--budget": (
        (*RUN, "--method", "tome"),
        tuple(f"{number}% gmacs" for number in (*NO_NUMBERS, ".", "0", "101", "5.0.0", "1e400"))
        + ("50%", "50", "gmacs", "50% watts", "50%% gmacs", "", "%", "50% gmacs tokens"),
    ),
    "--limit": ((*RUN, "--task", "fashion-mnist"), (*NO_NUMBERS, "0", "1.5", "1" + "0" * 30)),
    "--precision": (RUN, (*NO_NUMBERS, "0", "101", "1e9")),
    "--batch": (RUN, (*NO_NUMBERS, "0", "1.5", "1" + "0" * 30)),
    "--seconds": (RUN, (*NO_NUMBERS, "0", "1e9", "1" + "0" * 30)),
    "--seed": (RUN, (*NO_NUMBERS, "1.5", "1" + "0" * 30)),
    "--words": (
        ("cost", "llava-1.5-7b-hf"),
        (*NO_NUMBERS, "1.5", "99999999999", "1" + "0" * 30),
    ),
    "--layers": (
        ("cost", VIT, "--method", "evit", "--keep-rate", "0.5"),
        (*NO_NUMBERS, "9", "0,0", "1,9", "vision=9", "vision=0,vision=1", "1.5"),
    ),
    "--samples": (("tokens",), (*NO_NUMBERS, "0", "1.5", "1" + "0" * 30)),
    "--figures": (("report", "results"), (*NO_NUMBERS, "1.5", "²")),
    **{
        f"--{option}": (("train", VIT, "--method", "none", "--out", "out"), (*NO_NUMBERS, *more))
        for option, more in {
            "epochs": ("0",), "batch": ("0", "1.5"), "rate": ("0",), "rank": ("1.5",),
            "loss-weight": ("1.5",), "threads": ("0", "1" + "0" * 30), "seed": ("1" + "0" * 30,),
        }.items()
    },
}  # fmt: skip


def values() -> Iterator[Bad]:
    """Every bad value of every option that takes a number."""
    for option, (arguments, texts) in VALUES.items():
        for text in texts:
            yield Bad(f"{option} {text[:20]!r}", [*arguments, option, text], names=[option])


def values_in_suites() -> Iterator[Bad]:
    """Bad values at each place of a suite that takes one."""
    numbers = (-1, 1.5, 10**30, "abc", None, [], {}, True, float("nan"), float("inf"))
    for key in ("limit", "batch_sizes", "seed"):
        for value in numbers:
            if not (value is None and key != "seed"):  # the usual one
                yield _suite(f"{key}: {value}", SUITE | {key: value}, key)
    for value in (-1, 0, 1e9, "abc", None, [], {}, float("nan"), float("inf")):
        yield _suite(f"seconds: {value}", SUITE | {"latency_seconds": value}, "latency_seconds")
    for value in (-1, 0, 101, "abc", [], {}, float("nan"), float("inf")):
        yield _suite(f"precision: {value}", SUITE | {"precision": value}, "precision")
    for entry in ENTRIES:
        yield _suite(str(entry), SUITE | {"methods": [entry]}, "methods")


ENTRIES: list[dict[str, object]] = [
    {"name": "tome", "r": r}
    for r in (-1, 1.5, "abc", None, True, [], [[]], [[1, 1, 1]], [[1, -1]], {}, {"vision": -1},
              {"vision": []}, {"visoin": 2}, {"text": 2}, 10**9, 10**30, float("nan"), [1, -1],
              {"vision": 10**9}, [[10**9, 0]], {1: 2})
] + [
    {"name": "evit", "keep_rate": rate}
    for rate in (-1, 0, 1.5, "abc", None, True, [], [[]], [[0.5] * 9], {}, {"vision": 0},
                 {"text": 0.5}, float("nan"), float("inf"), 10**400, [0.5, 0])
] + [
    {"name": "evit", "keep_rate": 0.5, "layers": layers}
    for layers in ([9], [-9], [1, 1], [], ["a"], [1.5], [float("nan")], {"vision": [9]}, [True],
                   {"text": [1]}, [10**30], "1", 9)
] + [
    {"name": "tome", "budget": wanted}
    for wanted in ("nan% gmacs", ".% gmacs", 50, None, [], {}, "50%", "200% tokens", True)
] + [
    {"name": "tome", "r": 1, "keep_rate": 0.5},
    {"name": "tome", "r": 1, "budget": "50% gmacs"},
    {"name": "tome", "r": 2, "layers": [7]},
    {"name": "pitome", "margin": "wide"},
    {"name": "pitome", "margin": [[1, 2, 3]]},
    {"name": "pitome", "alpha": float("nan")},
    {"name": "pitome", "weighted": "maybe"},
    {"name": "crossget", "tokens": 3},
    {"name": "ats", "variant": "random"},
    {"name": "kmedoids", "iterations": "many"},
    {"name": "random", "seed": 10**30},
    {"name": "diffrate", "prune": 2.0},
    {"name": "diffrate", "rates": "vit-z"},
    {"name": "patchmerger", "tokens": 0, "queries": "random"},
    {"name": "visionzip", "dominant": "many"},
    {"name": "visionzip", "dominant": 3},
    {"name": "sparsevlm", "recycle_ratio": 2},
    {"name": "compose", "of": [3]},
    {"name": "compose", "of": [[3]]},
    {"name": "compose", "of": [[{"name": "tome", "r": -1}]]},
    {"name": "compose", "of": [[{"name": "tome", "rr": 1}]]},
    {"name": "tome", "models": []},
]  # fmt: skip

# --- models that cannot be -----------------------------------------------------------------------

CONFIGS: dict[str, dict[str, object]] = {
    "an unknown type": {"model_type": "no-such-type"},
    "a size that is a word": {"model_type": "vit", "hidden_size": "wide"},
    "a negative size": {"model_type": "vit", "hidden_size": -4},
}
CHANGES = {
    "another width": {"intermediate_size": 99},
    "more blocks": {"num_hidden_layers": 9},
    "another patch": {"patch_size": 8},
}


def models() -> Iterator[Bad]:
    """Folders whose configuration or weights make no model."""
    for what, config in CONFIGS.items():
        text = json.dumps(config)
        file = {"m/config.json": text}
        yield Bad(what, ["run", "--model", "m", "--random-weights"], file, names=["m"])
        yield Bad(f"{what}, cost", ["cost", "m"], file, names=["m"])
    for what, change in CHANGES.items():
        prepare = functools.partial(_changed, change=change)
        yield Bad(what, ["run", "--model", "m"], prepare=prepare, names=["m"])


def _changed(folder: Path, change: dict[str, int]) -> None:
    shutil.copytree(folder / VIT, folder / "m")
    config = json.loads((folder / "m/config.json").read_text())
    (folder / "m/config.json").write_text(json.dumps(config | change))


KINDS: dict[str, Callable[[], Iterator[Bad]]] = {
    "names": names,
    "names in suites": names_in_suites,
    "values": values,
    "values in suites": values_in_suites,
    "models": models,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny ViT in it."""
    place = tmp_path_factory.mktemp("names")
    folders.vit(place / "vit")
    return place


@pytest.mark.parametrize("kind", KINDS)
def test_what_makes_no_sense_is_refused_at_once(kind: str, place: Path) -> None:
    faults = []
    for i, bad in enumerate(KINDS[kind]()):
        folder = place / f"{kind} {i}".replace(" ", "-")
        folder.mkdir()
        faults += faults_of(bad, folder)
    assert not faults, "\n".join(faults)


# --- anything at all -----------------------------------------------------------------------------

BOUNDED = settings(derandomize=True, deadline=None, max_examples=150)
DIGITS = st.text(alphabet="0123456789.,=/%-+eE_xnaif ", max_size=12)
TEXT = st.one_of(st.text(max_size=30), DIGITS)
VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=2)),
    max_leaves=5,
)


@BOUNDED
@given(TEXT)
def test_a_text_is_a_number_in_range_or_refused(text: str) -> None:
    with contextlib.suppress(BenchError):
        assert 0 <= whole(text) <= LARGEST
    with contextlib.suppress(BenchError):
        assert 0 < share(text) <= 1
    with contextlib.suppress(BenchError):
        assert all(by_tower(text))
    with contextlib.suppress(BenchError):
        assert 0 < budgets.parse(text).percent <= 100
    for knob in ("r", "keep_rate", "layers"):
        with contextlib.suppress(BenchError):
            assert budget(text, knob) not in (None, [], {})


@BOUNDED
@given(VALUE, VALUE, st.sampled_from(["tome", "evit", "topk", "fastv"]))
def test_a_budget_counts_tokens_or_is_refused(value: object, layers: object, name: str) -> None:
    for knob in ("r", "keep_rate"):
        with contextlib.suppress(BenchError):
            check_request(name, {knob: value, "layers": layers})
            if not isinstance(value, dict) and not isinstance(layers, dict):
                schedule = as_schedule(registry.method(name)(), **{knob: value, "layers": layers})
                assert all(schedule(layer, 12, 64, 64) >= 0 for layer in range(12))


@BOUNDED
@given(VALUE, st.sampled_from(sorted(registry.methods())), st.randoms(use_true_random=False))
def test_a_parameter_is_taken_or_refused(value: object, name: str, random: Random) -> None:
    known = own(registry.method(name))
    with contextlib.suppress(BenchError):
        check_request(name, {random.choice(known) if known else "none": value})


@BOUNDED
@given(st.text(min_size=1, max_size=20))
def test_any_name_is_known_or_refused_in_a_printable_line(name: str) -> None:
    for look in (catalogue.check_name, tasks.check_name, registry.method, spec.load, profiles.get):
        with contextlib.suppress(BenchError):
            look(name)
    message = printable(f"unknown method '{name}'{near_miss(name, registry.methods())}")
    assert message.isprintable() and len(message) < 300
