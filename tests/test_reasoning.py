"""NLVR2's statements: files as they come, both layouts of images, and what a hand gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import Answering, picture, shade

from bench import tasks
from bench.core.errors import BenchError, Unsupported

STATEMENTS = [  # identifier, label, shades of its pictures
    ("dev-850-0-0", "True", (10, 90)),
    ("dev-850-1-0", "False", (90, 10)),  # the same sentence of another pair
    ("dev-850-0-1", "False", (10, 90)),
    ("test1-7-0-0", "True", (90, 10)),  # in a folder named like its split
    ("train-3-2-0", "True", (20, 80)),  # in folders by split and directory
    ("dev-9-3-1", "False", None),  # its right picture is missing
]


def nlvr2(folder: Path) -> str:
    rows = []
    for identifier, label, shades in STATEMENTS:
        split, group, pair, _ = identifier.split("-")
        row: dict[str, Any] = {"identifier": identifier, "label": label}
        row |= {"sentence": f"Left is darker, {identifier}.", "left_url": "x", "right_url": "y"}
        under = folder / "images"
        if split == "train":
            row["directory"] = 55
            under = under / "train" / "55"
        elif split == "test1":
            under = under / "test1"
        for side, tone in enumerate(shades or (0,)):
            picture(under / f"{split}-{group}-{pair}-img{side}.png", tone)
        rows.append(row)
    (folder / "dev.json").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return f"nlvr2:{folder}/dev.json:{folder}/images"


def model(outputs: int = 2) -> Any:
    """One that says true where the left picture is darker."""

    def judge(pairs: list[list[Any]], texts: list[str]) -> torch.Tensor:
        assert all(len(pair) == 2 for pair in pairs) and len(texts) == len(pairs)
        darker = torch.tensor([shade(left) < shade(right) for left, right in pairs])
        return torch.nn.functional.one_hot(darker.long(), outputs).float()

    fake = Answering("pair-classifier", lambda *_: "")
    fake.judge = judge
    return fake


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_statements_are_scored_to_what_a_hand_gets(tmp_path: Path, batch_size: int) -> None:
    task = tasks.load(nlvr2(tmp_path))
    scored = task.evaluate(model(), batch_size=batch_size)
    # Darker left: true, right. Lighter: false, right. Darker, labelled false: wrong. Lighter,
    # labelled true: wrong. Darker: right. A missing picture: wrong. 3 of 6.
    assert scored.outcomes["correct"] == [1, 1, 0, 0, 1, 0]
    assert scored.outcomes["said"] == [True, False, True, False, True, None]
    assert scored.metrics["accuracy"].value == 50
    # Five sentences (dev-850-*-0 is one, of two pairs); that one and train-3-*-0 are all right.
    assert scored.metrics["consistency"].value == pytest.approx(40)
    assert scored.metrics["consistency"].n == 5
    assert scored.failed == ["dev-9-3-img1.png"]
    assert task.submission(scored.outcomes).splitlines() == [  # type: ignore[attr-defined]
        "dev-850-0-0,True",
        "dev-850-1-0,False",
        "dev-850-0-1,True",
        "test1-7-0-0,False",
        "train-3-2-0,True",
        "dev-9-3-1,False",
    ]


def test_a_limit_leaves_consistency_out(tmp_path: Path) -> None:
    scored = tasks.load(nlvr2(tmp_path)).evaluate(model(), limit=4)
    assert set(scored.metrics) == {"accuracy"} and scored.metrics["accuracy"].n == 4


def test_what_cannot_judge_is_told_so(tmp_path: Path) -> None:
    task = tasks.load(nlvr2(tmp_path))
    with pytest.raises(Unsupported, match="needs a pair-classifier model"):
        task.evaluate(Answering("two-tower", lambda *_: ""))  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match="has 3 outputs"):
        task.evaluate(model(outputs=3))


@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_who_does_not_decide_is_never_right(tmp_path: Path, value: float) -> None:
    fake = model()
    fake.judge = lambda pairs, _: torch.full((len(pairs), 2), value)
    scored = tasks.load(nlvr2(tmp_path)).evaluate(fake)
    assert scored.metrics["accuracy"].value == 0 and set(scored.outcomes["said"]) == {None}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nlvr2:{0}/dev.json", "names 1 paths, not 2: write nlvr2:JSON:IMAGES"),
        ("nlvr2:{0}/no.json:{0}/images", "cannot read"),
        ("nlvr2:{0}/dev.json:{0}/else", "cannot read .*else"),
        ("nlvr2:{0}/odd.json:{0}/images", "no NLVR2 file.*'sentence'"),
        ("nlvr2:{0}/label.json:{0}/images", "no NLVR2 file.*maybe"),
        ("nlvr2:{0}/empty.json:{0}/images", "no NLVR2 file.*no rows"),
    ],
)
def test_wrong_files_are_one_clear_line(tmp_path: Path, name: str, message: str) -> None:
    nlvr2(tmp_path)
    (tmp_path / "odd.json").write_text('{"identifier": "dev-1-0-0", "label": "True"}')
    row = '{"identifier": "dev-1-0-0", "label": "maybe", "sentence": "x"}'
    (tmp_path / "label.json").write_text(row)
    (tmp_path / "empty.json").write_text("\n")
    with pytest.raises(BenchError, match=message) as error:
        tasks.load(name.format(tmp_path))
    assert "\n" not in str(error.value)
