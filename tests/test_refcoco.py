"""Referring expressions: files as they are published, boxes as models write them, hits by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from fakes import Answering
from PIL import Image, ImageDraw
from test_vqa import Tiny
from transformers import CLIPImageProcessor
from transformers.models.llava.image_processing_llava import LlavaImageProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from vlm_models import llava

from bench import tasks
from bench.core.errors import BenchError
from bench.models.view import pixels_seen, view
from bench.tasks import boxes
from bench.tasks.boxes import DESCRIBES, iou, located, read
from bench.tasks.localisation import Expression, Localisation
from bench.tasks.pictures import Arrays

CROP = CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
PAD = LlavaImageProcessor(
    size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}, do_pad=True
)
STRETCH = CLIPImageProcessor(size={"height": 48, "width": 48}, do_center_crop=False)
QWEN = Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 6})


# --- what a model sees ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(120, 60), (60, 120), (70, 70)])
@pytest.mark.parametrize("processor", [CROP, PAD, STRETCH])
def test_a_view_is_where_the_pixels_come_from(processor: Any, size: tuple[int, int]) -> None:
    """A picture whose shade is its place: what the processor shows at its ends tells the view."""
    width, height = size
    for axis, length in ((2, width), (1, height)):
        shade = np.linspace(0, 255, length)
        ramp = np.tile(shade, (height, 1)) if axis == 2 else np.tile(shade[:, None], (1, width))
        picture = Image.fromarray(ramp.astype(np.uint8)).convert("RGB")
        pixels = processor(images=[picture], return_tensors="pt")["pixel_values"][0, 0]
        pixels = (pixels * processor.image_std[0] + processor.image_mean[0]).numpy() * length
        line = pixels[24] if axis == 2 else pixels[:, 24]
        seen = view(processor, size)
        begin, extent = (seen.left, seen.width) if axis == 2 else (seen.top, seen.height)
        places = begin + (np.arange(48) + 0.5) / 48 * extent
        inside = (places > 4) & (places < length - 4)
        assert inside.sum() > 15
        assert np.abs(line - places)[inside].max() < 2.5


def test_how_many_pixels_are_seen() -> None:
    picture = Image.new("RGB", (150, 60))
    assert pixels_seen(CROP, picture) == (48, 48)
    assert pixels_seen(QWEN, picture) == (84, 28)  # at most six groups of 28 pixels
    several = lambda **_: {"pixel_values": torch.zeros(1, 3, 3, 8, 8)}  # noqa: E731
    with pytest.raises(BenchError, match="several of each picture"):
        pixels_seen(several, picture)


# --- what a model writes -------------------------------------------------------------------------


JSON = '```json\n[\n\t{"bbox_2d": [1, 2, 30, 40], "label": "a dog"}\n]\n```'


@pytest.mark.parametrize(
    ("answer", "unit", "box"),
    [
        (JSON, "pixels", (1, 2, 30, 40)),
        ("<ref>2 dogs</ref><box>[[10, 20, 300, 400]]</box>", "thousand", (10, 20, 300, 400)),
        ("the dog(10,20),(300,400)", "thousand", (10, 20, 300, 400)),
        ("(10, 20, 300, 400)", "thousand", (10, 20, 300, 400)),
        ("[[10, 20], [300, 400]]", "thousand", (10, 20, 300, 400)),
        ("It is at [0.1, .25, 0.5, 1.0], and [0, 0, 1, 1].", "share", (0.1, 0.25, 0.5, 1)),
        ("[-0.5, 0, 1, 1]", "share", (-0.5, 0, 1, 1)),
        ("<loc0256><loc0128><loc0512><loc1023> dog", "loc", (128, 256, 1023, 512)),
        ("<loc0256><loc0128><loc0512> dog", "loc", None),
        ("[1, 2, 3]", "pixels", None),
        ("1, 2, 3, 4", "pixels", None),
        ("[1, 2, 3, 4, 5]", "pixels", None),
        ("", "share", None),
    ],
)  # fmt: skip
def test_boxes_are_read_as_models_write_them(answer: str, unit: str, box: Any) -> None:
    assert read(answer, unit) == box


@pytest.mark.parametrize(
    ("answer", "unit", "processor", "box"),
    [
        ("[0.25, 0.5, 0.75, 1]", "share", STRETCH, (30, 30, 90, 60)),
        ("[0.25, 0.5, 0.75, 1]", "share", CROP, (45, 30, 75, 60)),  # the middle 60 by 60
        ("[0.25, 0.5, 0.75, 1]", "share", PAD, (30, 30, 90, 90)),  # 30 rows above and below
        ("[250, 500, 750, 1000]", "thousand", QWEN, (30, 30, 90, 60)),
        ("[14, 14, 56, 28]", "pixels", QWEN, (30, 30, 120, 60)),  # of 56 by 28 pixels
        ("<loc0512><loc0256><loc1024><loc0768>", "loc", STRETCH, (30, 30, 90, 60)),
        ("nowhere", "loc", STRETCH, None),
    ],
)
def test_boxes_are_placed_in_the_picture(answer: str, unit: str, processor: Any, box: Any) -> None:
    processor = processor if processor is not QWEN else Qwen2VLImageProcessor(
        size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 2}
    )  # fmt: skip
    found = located(answer, unit, processor, Image.new("RGB", (120, 60)))
    assert found is None if box is None else found == pytest.approx(box)


@pytest.mark.parametrize(
    ("one", "other", "value"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1),
        ((0, 0, 10, 10), (5, 0, 15, 10), 1 / 3),
        ((0, 0, 10, 10), (0, 0, 10, 5), 1 / 2),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0),
        ((0, 0, 10, 10), (20, 20, 30, 30), 0),
        ((0, 0, 10, 10), (10, 10, 0, 0), 0),  # corners the wrong way round
        ((0, 0, 10, 10), (5, 5, 5, 5), 0),
    ],
)
def test_intersection_over_union_by_hand(one: Any, other: Any, value: float) -> None:
    assert iou(one, other) == iou(other, one) == pytest.approx(value)


def test_intersection_over_union_is_torchvisions() -> None:
    from torchvision.ops import box_iou

    corners = torch.rand(200, 2, 4, generator=torch.Generator().manual_seed(0))
    corners[..., 2:] += corners[..., :2]
    for one, other in corners.tolist():
        expected = box_iou(torch.tensor([one]), torch.tensor([other])).item()
        assert iou(tuple(one), tuple(other)) == pytest.approx(expected, abs=1e-5)


# --- whole tasks ---------------------------------------------------------------------------------


SHAPES = {"red": (10, 10, 40, 30), "blue": (60, 20, 100, 50)}


def drawn(path: Path) -> Path:
    """Two rectangles on a picture of 120 by 60 pixels."""
    image = Image.new("RGB", (120, 60), "white")
    for colour, (left, top, right, bottom) in SHAPES.items():
        ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), fill=colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def seeing(family: str, write: Callable[[Any], str], processor: Any = STRETCH) -> Any:
    """A model of a family that finds the colour it is asked for, and writes the box so."""

    def say(images: list[Any], text: str) -> str:
        pixels = np.asarray(images[0]).astype(int)
        pure = {"red": (255, 0, 0), "blue": (0, 0, 255)}
        (colour,) = [name for name in pure if name in text]
        at = np.argwhere((np.abs(pixels - pure[colour]) < 90).all(2))
        (top, left), (bottom, right) = at.min(0), at.max(0) + 1
        return write(np.array([left, top, right, bottom]))

    model = Answering("multimodal", say)
    model.config = SimpleNamespace(model_type=family)
    model.processor = SimpleNamespace(image_processor=processor)
    return model


def qwen_vl(folder: Path) -> str:
    drawn(folder / "images" / "train2014" / "a.png")
    rows = [
        {"image": "data/coco/train2014/a.png", "sent": f"the {name} one", "bbox": list(box)}
        | {"height": 60, "width": 120}
        for name, box in SHAPES.items()
    ]
    (folder / "refcoco_val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"refcoco:{folder}/refcoco_val.jsonl:{folder}/images"


def shikra(folder: Path) -> str:
    drawn(folder / "a.png")
    rows = [
        {"img_path": "a.png", "expression": f"the {name} one", "bbox": list(box)}
        | {"dataset_name": "refcoco", "height": 120, "width": 240}  # twice the picture's size
        for name, box in (("red", (20, 20, 80, 60)), ("blue", (120, 40, 200, 100)))
    ]
    (folder / "REC_refcoco_unc_val.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"refcoco:{folder}/REC_refcoco_unc_val.jsonl"


def jxu(folder: Path) -> str:
    drawn(folder / "images" / "coco" / "train2014" / "a.png")
    rows = [
        {
            "sentences": [{"raw": f"The {name} ONE", "sent": f"the {name} one", "sent_id": 1}],
            "image_path": "coco/train2014/a.png",
            "bbox": [float(side) for side in box],
            "raw_anns": "{}",
        }
        for name, box in SHAPES.items()
    ]
    data = datasets.DatasetDict({"validation": datasets.Dataset.from_list(rows)})
    data["validation"].to_parquet(folder / "hub" / "data" / "validation-00000-of-00001.parquet")
    return f"refcoco:{folder}/hub@validation:{folder}/images"


def lmms(folder: Path) -> str:
    image = str(drawn(folder / "a.png"))
    rows = [
        {"question_id": "1", "image": image, "question": "?", "answer": [f"the {name} one"]}
        | {"bbox": [left, top, right - left, bottom - top], "file_name": "a_1.jpg"}
        for name, (left, top, right, bottom) in SHAPES.items()
    ]
    data = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    data.to_parquet(folder / "testA.parquet")
    return f"refcoco:{folder}/testA.parquet"


@pytest.mark.parametrize("write", [qwen_vl, shikra, jxu, lmms])
def test_each_published_form_is_scored(tmp_path: Path, write: Any) -> None:
    task = tasks.load(write(tmp_path))
    model = seeing(
        "qwen2_vl",
        lambda box: f"({box[0] / 0.12},{box[1] / 0.06}),({box[2] / 0.12},{box[3] / 0.06})",
    )
    scored = task.evaluate(model, batch_size=2)
    assert model.seen == [(1, DESCRIBES.format(f"the {name} one")) for name in SHAPES]
    assert scored.outcomes["correct"] == [1, 1]
    assert scored.outcomes["iou"] == pytest.approx([1, 1], abs=1e-6)
    assert scored.primary == "accuracy"
    assert {name: m.value for name, m in scored.metrics.items()} == pytest.approx(
        {"accuracy": 100, "iou": 100}
    )


def test_a_box_beside_the_thing_is_wrong_and_its_overlap_is_told(tmp_path: Path) -> None:
    task = tasks.load(qwen_vl(tmp_path))
    model = seeing("qwen2_5_vl", lambda box: f'{{"bbox_2d": {(box + [0, 0, 0, 15]).tolist()}}}')
    scored = task.evaluate(model, limit=None)
    assert "output its bbox coordinates using JSON" in model.seen[0][1]
    # STRETCH shows 48 by 48 pixels: the model's numbers, which are the picture's, are no pixels.
    assert scored.outcomes["correct"] == [0, 0]
    whole = {"shortest_edge": 7200, "longest_edge": 7200}
    exact = Qwen2VLImageProcessor(patch_size=15, merge_size=2, size=whole)
    model.processor = SimpleNamespace(image_processor=exact)
    assert pixels_seen(exact, Image.new("RGB", (120, 60))) == (120, 60)
    scored = task.evaluate(model)
    assert scored.outcomes["iou"] == pytest.approx([20 / 35, 30 / 45])
    assert scored.metrics["iou"].value == pytest.approx(100 * (20 / 35 + 30 / 45) / 2)
    worse = seeing("qwen2_5_vl", lambda box: str((box + [0, 0, 0, 40]).tolist()))
    worse.processor = model.processor
    assert task.evaluate(worse).outcomes["correct"] == [0, 0]


def test_several_sentences_of_a_box_are_expressions_of_their_own(tmp_path: Path) -> None:
    lmms(tmp_path)
    data = datasets.load_dataset("parquet", data_files=f"{tmp_path}/testA.parquet", split="train")
    data = data.map(lambda row: {"answer": [*row["answer"], "another"]})
    data.to_parquet(tmp_path / "more.parquet")
    task = tasks.load(f"refcoco:{tmp_path}/more.parquet")
    assert [one.text for one in task.expressions] == [  # type: ignore[attr-defined]
        "the red one", "another", "the blue one", "another",
    ]  # fmt: skip
    assert [one.picture for one in task.expressions] == [0, 0, 1, 1]  # type: ignore[attr-defined]


def test_a_picture_that_does_not_decode_counts_as_wrong(tmp_path: Path) -> None:
    name = qwen_vl(tmp_path)
    file = tmp_path / "refcoco_val.jsonl"
    lost = json.loads(file.read_text().splitlines()[0]) | {"image": "lost.png"}
    file.write_text(file.read_text() + json.dumps(lost))
    scored = tasks.load(name).evaluate(seeing("llava", lambda _: "[0, 0, 1, 1]"))
    assert scored.failed == ["lost.png"] and scored.outcomes["answer"][2] == ""
    assert scored.outcomes["iou"] == pytest.approx([600 / 7200, 1200 / 7200, 0])


def test_the_convention_is_the_familys_or_asked_for(tmp_path: Path) -> None:
    name = qwen_vl(tmp_path)
    shares = lambda box: str((box / [120, 60, 120, 60]).tolist())  # noqa: E731
    model = seeing("mystery", shares)
    with pytest.raises(BenchError, match=r"nothing says how fake \(mystery\) writes boxes: add"):
        tasks.load(name).evaluate(model)
    assert model.seen == []
    asked = tasks.load(f"{name}?boxes=share&prompt=where is {{}}?").evaluate(model)
    assert asked.outcomes["correct"] == [1, 1]
    assert model.seen[0] == (1, "where is the red one?")
    # The user's word counts, though the family has another one.
    known = tasks.load(f"{name}?boxes=share").evaluate(seeing("qwen2_vl", shares))
    assert known.outcomes["correct"] == [1, 1]
    versions = {tasks.load(n).version for n in (name, f"{name}?boxes=share", f"{name}?prompt={{}}")}
    assert len(versions) == 3


class Boxing(Tiny):
    """Its tokens, four at a time, are corners in thousandths."""

    def decode(self, ids: torch.Tensor) -> list[str]:
        rows = [[(7 * int(i) + 13 * n) % 500 for n, i in enumerate(row[:4])] for row in ids]
        return [f"[{a}, {b}, {a + c + 1}, {b + d + 1}]" for a, b, c, d in rows]


def test_a_tiny_model_answers_the_same_alone_and_in_a_batch() -> None:
    model = Boxing("tiny", llava(), (24, 24), provenance={"weights": "path"})
    model = Boxing(
        "tiny", model.model, (24, 24), provenance={"weights": "path"},
        processor=SimpleNamespace(image_processor=STRETCH),
    )  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)
    texts = ["the dog", "a cat on the left of it", "who"]
    asked = [Expression(i, text, (0, 0, 24, 24)) for i, text in enumerate(texts)]
    alone = Localisation("alone", "1", Arrays(pixels), asked, "thousand").evaluate(
        model, batch_size=1
    )
    assert len(set(alone.outcomes["answer"])) > 1
    truth = [
        Expression(i, text, located(answer, "thousand", STRETCH, Image.new("RGB", (24, 24))))  # type: ignore[arg-type]
        for i, (text, answer) in enumerate(zip(texts, alone.outcomes["answer"], strict=True))
    ]
    batch = Localisation("tiny", "1", Arrays(pixels), truth, "thousand").evaluate(
        model, batch_size=3
    )
    assert batch.outcomes["answer"] == alone.outcomes["answer"]
    assert batch.outcomes["correct"] == [1, 1, 1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("refcoco:{0}/refs(unc).p", "is a pickle.*take the split as JSON lines"),
        ("refcoco:{0}", r"refs\(unc\).p is a pickle"),
        ("refcoco:{0}/no.jsonl", "cannot read .*no.jsonl"),
        ("refcoco:{0}/odd.jsonl", "row 1: it has none of 'sent'"),
        ("refcoco:{0}/flat.jsonl:{0}", "row 1: 'bbox' is .*not a box with an inside"),
        ("refcoco:{0}/short.jsonl:{0}", "row 1: 'bbox' is .*not a list of 4 numbers"),
        ("refcoco:{0}/refcoco_val.jsonl:{0}/images?boxes=inches", "must be one of pixels, thous"),
        ("refcoco:{0}/refcoco_val.jsonl:{0}/images?prompt=where", "lacks {} for the expression"),
        ("refcoco:{0}/refcoco_val.jsonl:{0}/images?split=val", "it takes boxes, prompt"),
        ("refcoco:{0}/refcoco_val.jsonl:{0}/else", "cannot read .*else"),
        ("refcoco:{0}/refcoco_val.jsonl:{0}/nothing", "none of 1 images can be opened"),
        ("refcoco:{0}/hub@validation", "names its images: add :IMAGES"),
        ("refcoco:{0}/hub@train:{0}/images", "cannot load data set"),
        ("refcoco:lmms-lab/RefCOCO", "several splits: write lmms-lab/RefCOCO@testA"),
    ],
)
def test_wrong_files_are_one_clear_line(tmp_path: Path, name: str, message: str) -> None:
    qwen_vl(tmp_path), jxu(tmp_path)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "refs(unc).p").write_bytes(b"\x80\x02]q\x00.")
    row = {"image": "a.png", "sent": "it", "bbox": [1, 2, 1, 5]}
    (tmp_path / "flat.jsonl").write_text(json.dumps(row))
    (tmp_path / "short.jsonl").write_text(json.dumps({**row, "bbox": [1, 2, 3]}))
    (tmp_path / "odd.jsonl").write_text('{"image": "a.png"}')
    with pytest.raises(BenchError, match=message) as error:
        tasks.load(name.format(tmp_path))
    assert "\n" not in str(error.value)


def test_every_family_with_a_convention_asks_with_a_place_for_the_expression() -> None:
    for way in (*boxes.USUAL.values(), *boxes.OF_FAMILIES.values()):
        assert way.prompt.count("{}") == 1 and way.unit in boxes.USUAL
