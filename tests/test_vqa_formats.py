"""VQAv2 and POPE as their files come, scored to what a hand gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import Answering, picture

from bench import tasks
from bench.core.errors import BenchError
from bench.tasks import vqa_formats
from bench.tasks.vqa_formats import SHORT
from bench.tasks.vqa_score import normalised_answer, soft_accuracy, yes_or_no


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("dont", "don't"),
        ("Two", "2"),
        ("none", "0"),
        ("The  red\nbus", "red bus"),
        ("an apple", "apple"),
        ("a", ""),
        ("1,000", "1000"),
        ("1,000 (one thousand)", "1000 1 thousand"),
        ("red,blue", "red blue"),  # touches no space: becomes one
        ("red, blue", "red blue"),  # touches a space: goes
        ("black-and-white", "black and white"),
        ("10:30", "10:30"),  # a colon is no punctuation to the official program
        ("3.5", "3.5"),
        ("yes.", "yes"),
        ("u.s.a.", "usa"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),  # two apostrophes short: not in the official table
        ("somebody'd", "somebodyd"),  # the official table's own slip
        ("Im", "im"),  # official keys with a capital never meet a lowered word
        ("its", "its"),
        ("what?!", "what"),
        ("\tYES \n", "yes"),
    ],
)
def test_answers_are_normalised_as_the_official_program_does(answer: str, normal: str) -> None:
    assert normalised_answer(answer) == normal


def test_soft_accuracy_leaves_one_person_out_at_a_time() -> None:
    people = ["two"] * 3 + ["2"] + ["three"] * 2 + ["many", "4", "5", "6"]
    # Four say 2. Leaving one of them out: 3 of 3 agree, 1. Leaving another out: 4, capped: 1.
    assert soft_accuracy("2", people) == 1
    # Two say 3. Leaving one of the two out: 1/3, twice; leaving one of the eight out: 2/3.
    assert soft_accuracy("three", people) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)  # 0.6
    # One says many: 0 when he is left out, 1/3 for the nine others.
    assert soft_accuracy("Many.", people) == pytest.approx(0.3)
    assert soft_accuracy("", people) == 0


def test_where_all_agree_nothing_is_normalised() -> None:
    assert soft_accuracy("two", ["two"] * 10) == 1
    assert soft_accuracy("2", ["two"] * 10) == 0
    assert soft_accuracy("Two", ["two"] * 10) == 0
    assert soft_accuracy(" two\n", ["two"] * 10) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Yes, there is.", "yes"),
        ("No", "no"),
        ("There is no dog in it", "no"),
        ("It is not there. Yes", "no"),
        ("Yes. No", "yes"),  # the first sentence alone
        ("NO", "yes"),  # the official program knows No and no
        ("a snowman", "yes"),
        ("", "yes"),  # as the official program has it
        ("yes\nNo", "yes"),  # words stand between spaces alone
        ("yes No", "no"),
        (". No", "yes"),
    ],
)
def test_yes_and_no_are_read_as_the_official_program_does(answer: str, said: str) -> None:
    assert yes_or_no(answer) == said


def vqav2(folder: Path) -> str:
    """Four questions about three pictures, of which the third is missing."""
    asked = [(10, 1, "How many ?"), (11, 1, "Is it red?"), (20, 2, "What?"), (30, 3, "Where?")]
    people = {
        10: (["two"] * 8 + ["3"] * 2, "number"),
        11: (["yes"] * 10, "yes/no"),
        20: (["cat"] * 2 + ["a dog"] * 8, "other"),
        30: (["here"] * 10, "other"),
    }
    questions = [{"question_id": q, "image_id": i, "question": text} for q, i, text in asked]
    annotations = [
        {
            "question_id": q,
            "image_id": q // 10,
            "question_type": "x",
            "answer_type": kind,
            "answers": [
                {"answer": a, "answer_confidence": "yes", "answer_id": i + 1}
                for i, a in enumerate(said)
            ],
        }
        for q, (said, kind) in people.items()
    ]
    head = {"data_subtype": "val2014", "data_type": "mscoco", "license": {}, "info": {}}
    (folder / "q.json").write_text(json.dumps({**head, "questions": questions}))
    (folder / "a.json").write_text(json.dumps({**head, "annotations": annotations}))
    picture(folder / "images" / "COCO_val2014_000000000001.jpg")
    picture(folder / "images" / "val2014" / "COCO_val2014_000000000002.jpg")
    return f"vqav2:{folder}/q.json:{folder}/a.json:{folder}/images"


def say(_: list[Any], text: str) -> str:
    bare = text.removesuffix(SHORT)
    return {"How many ?": "2", "Is it red?": "Yes", "What?": "the cat"}[bare]


def test_vqav2_files_are_scored_to_what_a_hand_gets(tmp_path: Path) -> None:
    task = tasks.load(vqav2(tmp_path))
    model = Answering("multimodal", say)
    scored = task.evaluate(model, batch_size=2)  # type: ignore[arg-type]
    # "2" is what eight say (as "two"): 1. "Yes" where all say "yes": 0, nothing is normalised.
    # "the cat", as two say: (2 x 1/3 + 8 x 2/3) / 10 = 0.6. The picture that is missing: 0.
    assert scored.outcomes["correct"] == pytest.approx([1, 0, 0.6, 0])
    assert scored.metrics["accuracy"].value == pytest.approx(40)
    assert scored.metrics["accuracy_other"].value == pytest.approx(30)
    assert {"accuracy_number", "accuracy_yes_no"} < set(scored.metrics)
    assert scored.failed == ["COCO_val2014_000000000003.jpg"]
    assert model.seen[0] == (1, "How many ?" + SHORT)
    assert json.loads(task.submission(scored.outcomes)) == [  # type: ignore[attr-defined]
        {"question_id": 10, "answer": "2"},
        {"question_id": 11, "answer": "Yes"},
        {"question_id": 20, "answer": "the cat"},
        {"question_id": 30, "answer": ""},
    ]
    for limit in (1, 2, 3):  # whichever were asked, each answer goes with its own number
        limited = task.evaluate(model, limit=limit)  # type: ignore[arg-type]
        sent = json.loads(task.submission(limited.outcomes))  # type: ignore[attr-defined]
        numbers = {"2": 10, "Yes": 11, "the cat": 20, "": 30}
        assert len(sent) == limit
        assert all(row["question_id"] == numbers[row["answer"]] for row in sent)


@pytest.mark.parametrize("form", ["vqav2", "pope"])
def test_the_line_for_short_answers_is_part_of_the_version(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {"vqav2": vqav2, "pope": pope}[form](tmp_path)
    before = tasks.load(name).version
    assert tasks.load(name).version == before
    monkeypatch.setattr(vqa_formats, "SHORT", " In one word.")
    assert tasks.load(name).version != before


def test_a_split_without_public_answers_is_answered_and_sent(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "test2015" / "COCO_test2015_000000000001.jpg")
    asked = [{"question_id": 5 + i, "image_id": 1 + i, "question": "What?"} for i in range(2)]
    data = {"data_subtype": "test-dev2015", "questions": asked}
    (tmp_path / "q.json").write_text(json.dumps(data))
    task = tasks.load(f"vqav2:{tmp_path}/q.json:{tmp_path}/images")
    scored = task.evaluate(Answering("multimodal", say))  # type: ignore[arg-type]
    assert scored.metrics == {} and scored.primary is None
    assert scored.failed == ["COCO_test2015_000000000002.jpg"]
    assert json.loads(task.submission(scored.outcomes)) == [  # type: ignore[attr-defined]
        {"question_id": 5, "answer": "the cat"},
        {"question_id": 6, "answer": ""},
    ]


def test_a_picture_of_pope_that_does_not_decode_is_no_yes(tmp_path: Path) -> None:
    scored = tasks.load(pope(tmp_path)).evaluate(Answering("multimodal", lambda *_: ""))  # type: ignore[arg-type]
    # An empty answer is a yes: two of the three yes are hit, the third has no picture.
    assert scored.outcomes["correct"] == [1, 0, 0, 1, 1, 0]
    assert scored.metrics["yes_ratio"].value == pytest.approx(500 / 6)


POPE = [
    ("Is there a dog in the image?", "yes", "Yes."),  # hit
    ("Is there a cat in the image?", "no", "Yes, there is a cat."),  # false alarm
    ("Is there a car in the image?", "no", "No"),  # right
    ("Is there a bus in the image?", "yes", "There is no bus"),  # missed
    ("Is there a cup in the image?", "yes", "yes"),  # hit
    ("Is there a hat in the image?", "yes", ""),  # its picture does not decode: missed
]


def pope(folder: Path) -> str:
    rows = [
        {
            "question_id": i + 1,
            "image": f"COCO_val2014_{i == 5:012d}.jpg",
            "text": t,
            "label": label,
        }
        for i, (t, label, _) in enumerate(POPE)
    ]
    (folder / "pope.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    picture(folder / "images" / f"COCO_val2014_{0:012d}.jpg")
    (folder / "images" / f"COCO_val2014_{1:012d}.jpg").write_bytes(b"no picture")
    return f"pope:{folder}/pope.json:{folder}/images"


def test_pope_files_are_scored_to_what_a_hand_gets(tmp_path: Path) -> None:
    task = tasks.load(pope(tmp_path))
    answers = {text + SHORT: said for text, _, said in POPE}
    scored = task.evaluate(Answering("multimodal", lambda _, text: answers[text]))  # type: ignore[arg-type]
    found = {name: metric.value for name, metric in scored.metrics.items()}
    # Three right of six; yes said three times, two of them rightly; two of four found;
    # F1 = 2 x 2/3 x 1/2 / (2/3 + 1/2) = 4/7.
    assert found == pytest.approx(
        {
            "accuracy": 50,
            "precision": 200 / 3,
            "recall": 50,
            "f1": 400 / 7,
            "yes_ratio": 50,
        }
    )
    assert scored.outcomes["correct"] == [1, 0, 1, 0, 1, 0]
    assert scored.metrics["precision"].n == 3 and scored.metrics["recall"].n == 4
    assert scored.failed == [f"COCO_val2014_{1:012d}.jpg"]


def test_pope_without_a_yes_has_no_precision(tmp_path: Path) -> None:
    scored = tasks.load(pope(tmp_path)).evaluate(Answering("multimodal", lambda *_: "no"))  # type: ignore[arg-type]
    assert scored.metrics["precision"].n == 0 and scored.metrics["f1"].value == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vqav2:{0}/q.json", "names 1 paths, not 2 or 3: write vqav2:"),
        ("vqav2:{0}/no.json:{0}/a.json:{0}/images", "cannot read .*no.json"),
        ("vqav2:{0}/a.json:{0}/a.json:{0}/images", "no VQAv2 questions file"),
        ("vqav2:{0}/q.json:{0}/q.json:{0}/images", "no VQAv2 annotations file"),
        ("vqav2:{0}/q.json:{0}/a.json:{0}/else", "cannot read .*else"),
        ("vqav2:{0}/q.json:{0}/less.json:{0}/images", "no answers to question 10"),
        ("vqav2:{0}/none.json:{0}/a.json:{0}/images", "no VQAv2 questions file.*list of 1 or more"),
        ("pope:{0}/q.json:{0}/images", "no POPE file"),
        ("pope:{0}/odd.json:{0}/images", "no POPE file.*row 1: .*maybe"),
        ("pope:{0}/pope.json:{0}/images?k=3", "unknown option 'k=3' in pope.*takes none"),
    ],
)
def test_wrong_files_are_one_clear_line(tmp_path: Path, name: str, message: str) -> None:
    vqav2(tmp_path), pope(tmp_path)
    (tmp_path / "less.json").write_text('{"annotations": []}')
    (tmp_path / "none.json").write_text('{"questions": [], "data_subtype": "val2014"}')
    (tmp_path / "odd.json").write_text('{"image": "a.jpg", "text": "?", "label": "maybe"}\n')
    with pytest.raises(BenchError, match=message) as error:
        tasks.load(name.format(tmp_path))
    assert "\n" not in str(error.value)
