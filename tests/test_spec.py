from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from bench.core.errors import BenchError
from bench.measure import profiles
from bench.records.record import label
from bench.runs import checking, options, spec
from bench.runs.keys import key_of


def parse(text: str) -> spec.Suite:
    document = spec.Document(text, "quick.yaml")
    return spec.parse({"name": "quick", **document.data}, document)


GOOD = """\
models:
  - embedded:vit-fashion
  - {name: embedded:clip-emoji, tasks: [emoji-retrieval]}
tasks: [fashion-mnist]
methods:
  - {name: tome, r: [4, 8]}
  - {name: evit, keep_rate: [0.7, 0.5], layers: [3, 6, 9]}
  - {name: crossget, r: {vision: 8, text: 2}, models: [embedded:clip-emoji]}
limit: 10
"""


def test_cells_put_the_unreduced_model_first_and_group_by_model() -> None:
    cells = parse(GOOD).cells()
    assert [(c.model.partition(":")[2], c.task, c.label) for c in cells] == [
        ("vit-fashion", "fashion-mnist", "none"),
        ("vit-fashion", "fashion-mnist", "tome r=4"),
        ("vit-fashion", "fashion-mnist", "tome r=8"),
        ("vit-fashion", "fashion-mnist", "evit keep_rate=0.7 layers=3,6,9"),
        ("vit-fashion", "fashion-mnist", "evit keep_rate=0.5 layers=3,6,9"),
        ("clip-emoji", "emoji-retrieval", "none"),
        ("clip-emoji", "emoji-retrieval", "tome r=4"),
        ("clip-emoji", "emoji-retrieval", "tome r=8"),
        ("clip-emoji", "emoji-retrieval", "evit keep_rate=0.7 layers=3,6,9"),
        ("clip-emoji", "emoji-retrieval", "evit keep_rate=0.5 layers=3,6,9"),
        ("clip-emoji", "emoji-retrieval", "crossget r=vision:8,text:2"),
    ]
    assert [c.baseline for c in cells].count(True) == 2
    assert cells[3].params == {"keep_rate": 0.7, "layers": [3, 6, 9]}


def test_lists_within_lists_are_values_of_a_sweep() -> None:
    text = "models: [m/m]\nmethods: [{name: t, r: [[4, 2], [1, 1]], layers: [[0, 1], [2, 3]]}]"
    params = [c.params for c in parse(text).cells()[1:]]
    assert params[0] == {"r": [4, 2], "layers": [0, 1]}
    assert len(params) == 4


def test_a_method_written_twice_runs_once() -> None:
    text = "models: [m/m]\nmethods: [none, {name: t, r: [4]}, {name: t, r: [4, 5]}]"
    assert [c.label for c in parse(text).cells()] == ["none", "t r=4", "t r=5"]


def test_profiles_dtypes_and_batch_sizes_reach_the_cells() -> None:
    text = "models: [m/m]\nmethods: [none]\nprofiles: [a, b]\ndtypes: [float32, bfloat16]\n"
    cells = parse(text + "batch_sizes: 4").cells()
    assert [(c.profile, c.dtype) for c in cells] == [
        ("a", "float32"),
        ("a", "bfloat16"),
        ("b", "float32"),
        ("b", "bfloat16"),
    ]
    assert cells[0].batch_sizes == (4,)
    assert cells[0].task == "cost"


def test_what_a_suite_says_once_reaches_every_cell() -> None:
    text = """\
models: [a/with, {name: b/without, random_weights: false}]
methods: [{name: t, r: 4}]
random_weights: true
seed: 7
limit: 10
latency_seconds: 0.5
backends: [sdpa, eager]
"""
    cells = parse(text).cells()
    assert {(c.seed, c.limit, c.latency_seconds) for c in cells} == {(7, 10, 0.5)}
    assert [(c.model, c.random_weights, c.backend, c.label) for c in cells] == [
        (model, random, backend, label)
        for model, random in (("a/with", True), ("b/without", False))
        for backend in ("sdpa", "eager")
        for label in ("none", "t r=4")
    ]


def test_labels_tell_settings_apart() -> None:
    assert label("evit", {"keep_rate": 0.525}) == "evit keep_rate=0.525"
    assert label("evit", {"keep_rate": 0.5}) == "evit keep_rate=0.5"
    assert label("t", {"r": {"vision": [4, 0.25]}}) == "t r=vision:4,0.25"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [m]\nmethds: [none]", "quick.yaml:2: unknown key 'methds' — did you mean 'met"),
        ("models:\n  - {name: m, task: [x]}\nmethods: [none]", "quick.yaml:2: unknown key 'task'"),
        ("models: [m]\nmethods: [none]\nlimit: 0", "quick.yaml:3: 'limit': input should be"),
        ("models: [m]\nmethods: [none]\nlimit: many", "quick.yaml:3: 'limit': "),
        ("models: [m]\nmethods: [none]\ndtypes: [float8]", "quick.yaml:3: 'dtypes.0': "),
        ("models: [m]\nmethods:\n  - r: 8", "quick.yaml:3: 'methods.0.name': field required"),
        ("models: []\nmethods: [none]", "quick.yaml:1: 'models': "),
        ("models: [m]", "quick.yaml:1: 'methods': field required"),
        ("models: [m\nmethods: [none]", "quick.yaml:2: not valid YAML"),
        ("- models", "quick.yaml:1: a suite is a mapping"),
        ("", "quick.yaml:1: a suite is a mapping"),
    ],
)
def test_mistakes_name_their_line(text: str, message: str) -> None:
    with pytest.raises(BenchError) as error:
        parse(text)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_the_suites_that_ship_parse_and_hold_every_method() -> None:
    from bench.core.registry import methods

    assert set(spec.names()) >= {"quick", "standard", "cost", "cost-gpu"}
    for name in spec.names():
        suite, _ = spec.load(name)
        assert suite.description
        assert {c.method for c in suite.cells()} <= set(methods())
    wanted = ["none", "random", "pool", "downsample", "tome", "topk", "evit", "crossget"]
    assert {c.method for c in spec.load("quick")[0].cells()} >= set(wanted)


def test_unknown_suites_name_the_near_miss(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="unknown suite 'quik' — did you mean 'quick'"):
        spec.load("quik")
    with pytest.raises(BenchError, match="no suite file"):
        spec.load(str(tmp_path / "x.yaml"))


def test_a_suite_file_takes_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("models: [m/m]\nmethods: [none]")
    assert spec.load(str(tmp_path / "mine.yaml"))[0].name == "mine"


def test_a_suite_may_extend_another(tmp_path: Path) -> None:
    quick, (engines, _) = spec.load("quick")[0], spec.load("engines")
    assert (engines.name, engines.engines) == ("engines", ["eager", "compile"])
    alone = [replace(cell, suite="quick") for cell in engines.cells()]
    assert [cell for cell in alone if cell.engine == "eager"] == quick.cells()
    assert len(alone) == 2 * len(quick.cells())

    (tmp_path / "base.yaml").write_text("models: [m/m]\nmethods: [none]\nlimit: 5\nseed: 3")
    (tmp_path / "mine.yaml").write_text("limit: 7\nextends: base.yaml")
    mine, _ = spec.load(str(tmp_path / "mine.yaml"))
    assert (mine.name, mine.limit, mine.seed) == ("mine", 7, 3)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("models: [m/m]\nmethods: [none]\nlimit: 0", "mine.yaml:2: base.yaml:3: 'limit': "),
        ("extends: mine.yaml", "mine.yaml:2: base.yaml:1: mine.yaml:2: it extends itself"),
        ("extends: ../mine/../mine/base.yaml", "mine.yaml:2: base.yaml:1: base.yaml:1: it extends"),
        ("extends: quik", "mine.yaml:2: base.yaml:1: unknown suite 'quik' — did you mean 'quick'"),
    ],
)
def test_mistakes_in_what_a_suite_extends_name_both(
    tmp_path: Path, base: str, message: str
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "base.yaml").write_text(base)
    (folder / "mine.yaml").write_text("limit: 7\nextends: base.yaml")
    with pytest.raises(BenchError) as error:
        spec.load(str(folder / "mine.yaml"))
    assert str(error.value).startswith(message)


SHORT = GOOD + "names: {embedded:clip-emoji: CLIP, fashion-mnist: Fashion}\n"


def test_short_names_ride_along_and_change_no_key() -> None:
    plain, named = parse(GOOD).cells(), parse(SHORT).cells()
    assert [cell.names for cell in named[4:6]] == [
        {"fashion-mnist": "Fashion"},
        {"embedded:clip-emoji": "CLIP"},
    ]
    assert named[5] == replace(plain[5], names={"embedded:clip-emoji": "CLIP"})
    keys = {key_of(cell, profiles.get("cpu"), "m", {}) for cell in (plain[5], named[5])}
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("{embedded:clip-emojy: CLIP}", "quick.yaml:10: this suite has no model or task"),
        ("{fashion-mnist: A, embedded:clip-emoji: A}", "two models or tasks are named 'A'"),
        ("{fashion-mnist: ''}", "quick.yaml:10: the name '' is empty"),
    ],
)
def test_a_short_name_of_nothing_is_a_mistake(names: str, says: str) -> None:
    text = GOOD + f"names: {names}\n"
    document = spec.Document(text, "quick.yaml")
    with pytest.raises(BenchError, match=re.escape(says)):
        checking.check(parse(text), document)


def test_a_method_may_be_for_some_tasks_alone() -> None:
    text = """
models:
  - {name: "embedded:vit-fashion", tasks: [fashion-mnist, cost]}
methods:
  - {name: topk, keep_rate: 0.5}
  - {name: tome, r: [1, 2], tasks: [fashion-mnist]}
"""
    cells = [(cell.task, cell.label) for cell in parse(text).cells()]
    both = [("fashion-mnist", "none"), ("fashion-mnist", "topk keep_rate=0.5")]
    more = [("fashion-mnist", "tome r=1"), ("fashion-mnist", "tome r=2")]
    assert cells == [*both, *more, ("cost", "none"), ("cost", "topk keep_rate=0.5")]
    text = text.replace("tasks: [fashion-mnist]}", "tasks: [fashion]}")
    document = spec.Document(text, "quick.yaml")
    wrong = spec.parse({"name": "quick", **document.data}, document)
    with pytest.raises(BenchError, match=r"quick.yaml:6: no task 'fashion' in this suite — did"):
        checking.check(wrong, document)


def test_a_task_that_is_left_out_takes_its_methods_along() -> None:
    chosen, _ = options.suite({"suite": "quick", "task": ["emoji-clutter"]})
    cells = chosen.cells()
    assert {cell.task for cell in cells} == {"emoji-clutter"} and len(cells) == 8
