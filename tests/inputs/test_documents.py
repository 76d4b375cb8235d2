"""Bad documents of every kind in every place: one line, exit code 2, nothing written."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.core.documents import parse_json, parse_json_lines, parse_yaml, yaml_value
from bench.core.errors import BenchError
from bench.measure import profiles
from bench.records.record import Accuracy, Cell, Cost, Record
from bench.records.store import Store
from bench.report.data import load
from bench.runs import solved_budgets, spec
from bench.runs.resources import Resources
from bench.training import loop
from tests.inputs.bad_documents import BROKEN, CORPUS, FORMS, VALUES
from tests.inputs.judge import Bad, faults_of

# An eleventh of them, other kinds in each place; EVERY_INPUT=1 runs all.
SOME = CORPUS if os.environ.get("EVERY_INPUT") else CORPUS[::11]
BOUNDED = settings(max_examples=100, deadline=None, derandomize=True, database=None)
CELL = Cell("s", "embedded:vit-fashion", "cost", "tome", {"r": 8}, "tome r=8", "cpu")
RECORD = Record(
    "a" * 64, "ok", None, CELL, Accuracy(None), Cost(), {}, {"machine": "m"}, "", "2026", 1.0
)


@pytest.mark.parametrize("bad", SOME, ids=lambda bad: bad.name)
def test_a_bad_document_is_one_line(bad: Bad, tmp_path: Path) -> None:
    assert faults_of(bad, tmp_path) == []


def test_bad_documents_are_many_and_each_there_once() -> None:
    assert len({bad.name for bad in CORPUS}) == len(CORPUS) > 1500


# --- any text at all -----------------------------------------------------------------------------

YAML = r"""[ ] { } : , - &a *a !!int ! << ? | > ' " \u \ % --- ... # @ a 0x 1 . e9 null ~"""
JSON = r"""[ ] { } : , " \ud8 \ 1 - . e99 NaN null "a" """
TOKENS = st.sampled_from([*YAML.split(), ": ", ", ", "- ", "? ", "\n", "\t", "  "])
JSON_TOKENS = st.sampled_from(JSON.split())
TEXT = st.text(st.characters(codec="utf-8"))
ANY = TEXT | st.lists(TOKENS).map("".join)
PLAIN = st.none() | st.booleans() | st.integers(-(1 << 62), 1 << 62) | TEXT
VALUE = st.recursive(
    PLAIN | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=8,
)


@BOUNDED
@given(ANY)
@example("a: " + VALUES["a billion merges"][0])  # type: ignore[operator]
def test_any_text_is_yaml_or_one_line(text: str) -> None:
    for parse in (parse_yaml, yaml_value, spec.Document):
        try:
            parse(text, "x.yaml")
        except BenchError as error:
            assert str(error).startswith("x.yaml:") and len(str(error)) < 300


@BOUNDED
@given(ANY | st.lists(JSON_TOKENS).map("".join))
def test_any_text_is_json_or_one_line(text: str) -> None:
    for parse in (parse_json, parse_json_lines):
        try:
            parse(text, "x.json")
        except BenchError as error:
            assert str(error).startswith("x.json:") and len(str(error)) < 300


@BOUNDED
@given(VALUE)
def test_a_good_document_is_read_as_it_is(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert parse_json(text, "x") == value
    lines = [json.dumps(row, ensure_ascii=False) + "\r\n" for row in (value, [value])]
    assert parse_json_lines("".join(lines), "x") == [value, [value]]


def test_lines_are_counted_in_the_file() -> None:
    with pytest.raises(BenchError, match="x.jsonl:3: "):
        parse_json_lines('{"a": "\u2028"}\n\n{', "x.jsonl")


# --- what is skipped or set aside ----------------------------------------------------------------


def _bad_records() -> dict[str, bytes]:
    whole = json.loads(RECORD.to_json())
    forms: dict[str, Any] = dict(FORMS)
    for key in ("key", "status", "cell", "accuracy", "cost", "env", "created", "schema"):
        forms[f"without {key}"] = {k: v for k, v in whole.items() if k != key or key == "schema"}
        forms[f"{key} is a number"] = {**whole, key: 5.5}
    del forms["without schema"]  # which is 1 by default
    files = {kind: json.dumps(form).encode() for kind, form in forms.items()} | BROKEN
    text = RECORD.to_json().encode()
    files["NaN in it"] = text.replace(b'"seconds": 1.0', b'"seconds": NaN')
    files["infinity in it"] = text.replace(b'"seconds": 1.0', b'"seconds": 1e999')
    files["nested deep"] = text.replace(b'"r": 8', b'"r": ' + b"[" * 150 + b"]" * 150)
    assert all(content != text for content in files.values())
    return files


def test_bad_records_are_skipped_and_each_named(tmp_path: Path) -> None:
    good = Store(tmp_path).write(RECORD)
    bad = _bad_records()
    for i, content in enumerate(bad.values()):
        (good.parent / f"bad-{i}.json").write_bytes(content)
    records, notes = load.read([tmp_path])
    assert records == [RECORD] and len(notes) == len(bad)
    for i, kind in enumerate(bad):
        note = [note for note in notes if f"/bad-{i}.json:" in note]
        assert len(note) == 1 and len(note[0]) < 300 and "\n" not in note[0], kind
        assert note[0].endswith("; skipped") and str(tmp_path) not in note[0]


@pytest.mark.parametrize("content", [*BROKEN.values(), b"5", b"[]", b'{"k": 5}', b'{"k": {}}'])
def test_budgets_that_cannot_be_read_are_set_aside(
    content: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cell = dataclasses.replace(CELL, params={"budget": "50% gmacs"})
    monkeypatch.setattr(solved_budgets, "_solved", lambda *_: {"params": {"r": 3}})
    file = tmp_path / "budgets.json"
    file.write_bytes(content)
    for _ in range(2):  # the second time from the new file
        profile, resources = profiles.get("cpu"), Resources()
        solved, refused = solved_budgets.within_budget(cell, profile, resources, file)
        assert solved.params == {"r": 3} and refused is None
    aside = [
        path for path in tmp_path.iterdir() if path.name.startswith("budgets.json.unreadable-")
    ]
    assert len(aside) == 1 and aside[0].read_bytes() == content
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and aside[0].name in told and "solved anew" in told
    assert len(json.loads(file.read_text())) == 1


def test_half_a_line_of_a_log_is_dropped(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 20}\n{"step": 40}\n5\n{"loss": 1}\n{"step": 6')
    loop._log(log, 30)(step=40)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [20, 40]
