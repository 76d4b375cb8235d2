"""Images, rows and names of tasks as they should not be: named, counted as wrong, or refused."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import Answering, picture
from PIL import Image

from bench import tasks
from bench.core.errors import BenchError
from bench.models import catalogue
from bench.models.loaded import Classifier, Matcher, TwoTower
from bench.records.record import Cell
from bench.runs import cell as cells
from tests.inputs.judge import Bad, faults_of

RUN = ["run", "--model", "embedded:vit-fashion", "--method", "none", "--results", ".", "--task"]
GOOD, BAD = "good.jpg", "bad.jpg"


@pytest.fixture(autouse=True, scope="module")
def _imported() -> None:
    """What the first input alone would wait for."""
    catalogue.load("embedded:vit-fashion")
    tasks.names()


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail what hangs."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refused(bad: Bad, folder: Path) -> None:
    with within(15):
        assert faults_of(bad, folder) == []


# --- images that do not decode -------------------------------------------------------------------


def saved(kind: str, size: tuple[int, int] = (64, 64), mode: str = "RGB", **more: Any) -> bytes:
    """A picture of noise in a format."""
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, kind, **more)
    return file.getvalue()


def png(width: int, height: int, bits: int = 8, data: bytes = b"", extra: bytes = b"") -> bytes:
    """A grey PNG whose header says what one likes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), extra and chunk(b"zTXt", extra), chunk(b"IDAT", data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IEND", b"")])


PNG, JPEG = saved("PNG"), saved("JPEG")
CONTENTS = {
    "empty": b"",
    "text": b"no picture",
    "zeros": bytes(1000),
    "HTML of a login page": b"<!DOCTYPE html><html><body>Sign in</body></html>",
    "pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "truncated PNG": PNG[: len(PNG) // 2],
    "truncated JPEG": JPEG[: len(JPEG) // 2],
    "truncated GIF": saved("GIF")[:900],
    "truncated WebP": saved("WEBP")[:900],
    "truncated BMP": saved("BMP")[:900],
    "truncated TIFF": saved("TIFF")[:900],
    "head of a PNG alone": PNG[:8],
    "head of a JPEG alone": JPEG[:20],
    "PNG with flipped bits": PNG[:200] + bytes(b ^ 255 for b in PNG[200:300]) + PNG[300:],
    "PNG of no pixels": png(0, 0),
    "bomb that is an error": png(60_000, 60_000, 1, zlib.compress(bytes(100))),
    "bomb that is a warning": png(
        10_000, 10_000, 1, zlib.compress((b"\0" + bytes(1250)) * 10_000, 1)
    ),
    "bomb in a text": png(8, 8, extra=b"a\0\0" + zlib.compress(bytes(1 << 26), 1)),
    "PPM of a size without data": b"P6 9999 8888 255\n",
    "a line of pixels": saved("PNG", (2000, 1)),
    "a column of pixels": saved("PNG", (1, 2000)),
    "EPS, which is a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "PDF": b"%PDF-1.4\n1 0 obj\n",
    "PCX": saved("PCX"),
    "TGA": saved("TGA"),
    "32-bit pixels": saved("TIFF", mode="I"),
    "floating pixels": saved("TIFF", mode="F"),
}


def _socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(before)


def _circle(path: Path) -> None:
    path.symlink_to(path.name + ".2")
    path.with_name(path.name + ".2").symlink_to(path.name)


PLACED: dict[str, Callable[[Path], Any]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a socket": _socket,
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "two links to each other": _circle,
    "a link to a folder": lambda path: path.symlink_to("."),
    "a device that never ends": lambda path: path.symlink_to("/dev/zero"),
    "a link to a pipe": lambda path: (os.mkfifo(f"{path}.2"), path.symlink_to(f"{path}.2")),
}
MISSING: dict[str, Callable[[Path], Any]] = {"missing": lambda path: None}
NAMED = {
    "a NUL in its name": "a\0b.jpg",
    "5,000 characters in its name": "x" * 5000,
    "300 folders in its name": "a/" * 300 + "b.jpg",
    "no name": "",
    "a name that leads out": "../../..",
    "a file for a folder": f"{GOOD}/x.jpg",
}


def place(kind: str, path: Path) -> None:
    """Put a bad image there."""
    if kind in CONTENTS:
        path.write_bytes(CONTENTS[kind])
    else:
        (PLACED | MISSING)[kind](path)


def rows_of_karpathy(names: list[str]) -> dict[str, Any]:
    return {
        "images": [
            {"filename": name, "split": "test", "sentences": [{"raw": str(i)}]}
            for i, name in enumerate(names)
        ]
    }


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def made(task: str, folder: Path, names: list[str]) -> str:
    """Write a task's data with images of these names, whose answers are all yes; return its name.

    The images are put in `folder / "i"`, or in the folder of its only class.
    """
    images, data = folder / "i", folder / "d.json"
    images.mkdir()
    one = {"text": "?", "label": "yes"}
    if task in ("karpathy", "rerank-karpathy"):
        data.write_text(json.dumps(rows_of_karpathy(names)))
    elif task == "pope":
        data.write_text(lines([{"image": name, **one} for name in names]))
    elif task == "nocaps":
        rows = [{"id": i, "file_name": name} for i, name in enumerate(names)]
        data.write_text(json.dumps({"images": rows}))
    elif task == "zeroshot":
        test = [[name, 0, "a"] for name in names] + [[GOOD, 1, "b"]]
        data = folder / "split_zhou_X.json"
        data.write_text(json.dumps({"test": test}))
        images.rename(folder / "images")
        images.symlink_to("images")
        return f"zeroshot:{folder}"
    return f"{task}:{data}:{images}"


def made_with_numbers(task: str, folder: Path) -> tuple[str, list[Path]]:
    """Write a task's data whose form tells the images' names; return its name and the two paths."""
    images = folder / "i"
    if task in ("imagefolder", "zeroshot-folders"):
        picture(images / "b" / GOOD, 90)
        (images / "a").mkdir()
        paths = [images / "a" / "1.jpg", images / "a" / "2.jpg"]
        return f"{task.partition('-')[0]}:{images}", paths
    images.mkdir()
    if task == "nlvr2":
        row = {"sentence": "?", "label": "True"}
        text = lines([{"identifier": f"dev-1-{i}-0", **row} for i in range(2)])
        paths = [images / f"dev-1-{i}-img0.png" for i in range(2)]
        for path in paths:
            picture(path.with_name(path.name.replace("img0", "img1")))
    else:
        rows = [{"question_id": i, "image_id": i, "question": "?"} for i in range(2)]
        text = json.dumps({"data_subtype": "val2014", "questions": rows})
        people = {"answers": [{"answer": "yes"}] * 10, "answer_type": "yes/no"}
        answers = {"annotations": [{"question_id": i, **people} for i in range(2)]}
        (folder / "a.json").write_text(json.dumps(answers))
        paths = [images / f"COCO_val2014_{i:012d}.jpg" for i in range(2)]
    (folder / "d.json").write_text(text)
    between = f"{folder}/a.json:" if task == "vqav2" else ""
    return f"{task}:{folder}/d.json:{between}{images}", paths


NAMING = ("karpathy", "rerank-karpathy", "pope", "nocaps", "zeroshot")
NUMBERING = ("imagefolder", "zeroshot-folders", "nlvr2", "vqav2")


class Sees:
    """What the fakes share: they see the same in every picture."""

    device, dtype = torch.device("cpu"), torch.float32
    __setattr__ = object.__setattr__  # models are frozen

    def look(self, image: Any) -> torch.Tensor:
        return torch.zeros(3, 1, 1)

    def words(self, texts: list[str]) -> dict[str, torch.Tensor]:
        return {"ids": torch.tensor([text.endswith(("1", "b.")) for text in texts]).long()}

    def encode_texts(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.eye(2)[inputs["ids"]]


class Classes(Sees, Classifier):
    def __init__(self) -> None:
        super().__init__("fake", None, (1, 1), 3, self.look, classes=2)

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0]]).expand(len(pixels), 2)


class Two(Sees, TwoTower):
    def __init__(self) -> None:
        super().__init__("fake", None, (1, 1), 3, self.look, tokenizer=self.words)

    def encode_images(self, pixels: torch.Tensor) -> Any:
        return torch.tensor([[1.0, 0.0]]).expand(len(pixels), 2)


class Both(Sees, Matcher):
    def __init__(self) -> None:
        super().__init__("fake", None, (1, 1), 3, self.look, tokenizer=self.words)

    def encode_images(self, pixels: torch.Tensor) -> Any:
        return torch.tensor([[1.0, 0.0]]).expand(len(pixels), 2), pixels.flatten(2)

    def match(self, tokens: torch.Tensor, inputs: Any) -> torch.Tensor:
        return torch.zeros(len(tokens))


def model(task: str) -> Any:
    """A stand-in that answers yes, or class 0, to whatever it sees."""
    if task == "imagefolder":
        return Classes()
    if task.startswith(("zeroshot", "karpathy")):
        return Two()
    if task == "rerank-karpathy":
        return Both()
    kind = {"nocaps": "captioner", "nlvr2": "pair-classifier"}.get(task, "answerer")
    fake = Answering(kind, lambda *_: "yes")
    fake.judge = lambda pairs, _: torch.tensor([[0.0, 1.0]]).expand(len(pairs), 2)
    return fake


def outcomes(task: str, scored: Any) -> list[Any]:
    """Of each image, whether the model was right."""
    if task == "nocaps":
        return [caption == "yes" for caption in scored.outcomes["caption"]]
    if "karpathy" in task:
        return [rank == 0 for rank in scored.outcomes["rank_i2t"]]
    return [correct == 1 for correct in scored.outcomes["correct"]]


def is_named(task: str, name: str, bad: str) -> None:
    """The first image is right, the second one wrong and named, and nothing else happens."""
    with within(10):
        scored = tasks.load(name).evaluate(model(task), batch_size=2)
    assert outcomes(task, scored)[:2] == [True, False]
    assert len(scored.failed) == 1 and scored.failed[0].endswith(bad)
    json.dumps(scored.failed, ensure_ascii=False).encode()  # into a record


@pytest.mark.parametrize("kind", [*CONTENTS, *PLACED, *MISSING])
@pytest.mark.parametrize("task", NAMING)
def test_an_image_that_a_file_names(tmp_path: Path, task: str, kind: str) -> None:
    name = made(task, tmp_path, [GOOD, BAD])
    picture(tmp_path / "i" / GOOD)
    place(kind, tmp_path / "i" / BAD)
    is_named(task, name, BAD)


@pytest.mark.parametrize("kind", [*CONTENTS, *PLACED, *MISSING])
@pytest.mark.parametrize("task", NUMBERING)
def test_an_image_that_its_place_names(tmp_path: Path, task: str, kind: str) -> None:
    if kind == "missing" and "folder" in task:
        pytest.skip("what is missing in a folder is nowhere named")
    name, (good, bad) = made_with_numbers(task, tmp_path)
    picture(good)
    place(kind, bad)
    is_named(task, name, bad.name)


@pytest.mark.parametrize("kind", NAMED)
@pytest.mark.parametrize("task", NAMING)
def test_the_name_of_an_image(tmp_path: Path, task: str, kind: str) -> None:
    name = made(task, tmp_path, [GOOD, NAMED[kind]])
    picture(tmp_path / "i" / GOOD)
    is_named(task, name, "")


@pytest.mark.parametrize("kind", CONTENTS)
def test_an_image_in_a_data_set(tmp_path: Path, kind: str) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"bytes": JPEG, "path": None}, {"bytes": CONTENTS[kind], "path": None}]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    data = datasets.Dataset.from_dict({"image": rows, "label": [0, 0]}, features=features)
    data.save_to_disk(str(tmp_path / "data"))
    is_named("imagefolder", f"hf-dataset:{tmp_path / 'data'}", "row 1")


def test_a_name_that_is_no_unicode(tmp_path: Path) -> None:
    name, (good, _) = made_with_numbers("imagefolder", tmp_path)
    picture(good)
    with contextlib.suppress(OSError):  # a file system that has none
        Path(os.fsdecode(os.fsencode(good.parent) + b"/\xff.jpg")).write_bytes(b"")
        is_named("imagefolder", name, "\\udcff.jpg")


def test_long_names_are_short_in_a_record(tmp_path: Path) -> None:
    name = made("pope", tmp_path, [GOOD, "x" * 5000])
    picture(tmp_path / "i" / GOOD)

    class Opened:
        loaded = model("pope")

    cell = Cell("s", "m", name, "none", {}, "none", "cpu")
    accuracy = cells.accuracy(cell, Opened(), tasks.load(name), lambda _: None)  # type: ignore[arg-type]
    assert accuracy.reason and "count as wrong (1): xxx" in accuracy.reason
    assert len(accuracy.reason) < 300


# --- images that do ------------------------------------------------------------------------------


def pixel(content: bytes, folder: Path) -> tuple[int, ...]:
    """The colour that a task sees in a picture of one colour."""
    name, (good, other) = made_with_numbers("imagefolder", folder)
    good.write_bytes(content)
    picture(other)
    task = tasks.load(name)
    assert task.evaluate(Classes()).failed == []  # type: ignore[arg-type]
    image = task.prepared.pictures.open(0)  # type: ignore[attr-defined]
    assert image.mode == "RGB" and image.size == (8, 6)
    return image.getpixel((0, 0))  # type: ignore[no-any-return]


def coloured(kind: str, mode: str, colour: Any, **more: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (8, 6), colour).save(file, kind, **more)
    return file.getvalue()


RED = (200, 20, 40)
PALETTE = Image.new("RGB", (8, 6), RED).convert("P", palette=Image.Palette.ADAPTIVE)


def _palette(kind: str, **more: Any) -> bytes:
    file = io.BytesIO()
    PALETTE.save(file, kind, **more)
    return file.getvalue()


TURNED = Image.Exif()
TURNED[0x112] = 6  # "turn by 90 degrees"; rows stay as they are stored
GREY_16 = Image.fromarray(np.full((6, 8), 200 * 257, np.uint16))


def _sixteen(kind: str) -> bytes:
    file = io.BytesIO()
    GREY_16.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (coloured("PNG", "1", 1), (255, 255, 255)),
        (coloured("PNG", "L", 70), (70, 70, 70)),
        (coloured("PNG", "LA", (70, 0)), (70, 70, 70)),
        (coloured("TIFF", "PA", (70, 128)), None),
        (_palette("PNG"), RED),
        (_palette("PNG", transparency=b"\x80\x00"), RED),
        (_palette("GIF"), RED),
        (_palette("GIF", save_all=True, append_images=[Image.new("P", (8, 6))] * 2), RED),
        (coloured("PNG", "RGBA", (*RED, 0)), RED),
        (coloured("WEBP", "RGBA", (*RED, 255), lossless=True), RED),
        (coloured("TIFF", "CMYK", (55, 235, 215, 0)), RED),
        (coloured("JPEG", "CMYK", (55, 235, 215, 0), quality=100), RED),
        (coloured("TIFF", "YCbCr", (85, 103, 210)), (200, 27, 40)),
        (_sixteen("PNG"), (200, 200, 200)),
        (_sixteen("TIFF"), (200, 200, 200)),
        (coloured("JPEG", "RGB", RED, quality=100, exif=TURNED), RED),
        (coloured("BMP", "RGB", RED), RED),
        (coloured("PPM", "RGB", RED), RED),
    ],
)
def test_every_mode_is_seen_in_colour(tmp_path: Path, content: bytes, seen: Any) -> None:
    found = pixel(content, tmp_path)
    assert seen is None or found == pytest.approx(seen, abs=8)


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (3, 5)])
def test_small_pictures_are_pictures(tmp_path: Path, size: tuple[int, int]) -> None:
    name, paths = made_with_numbers("imagefolder", tmp_path)
    for path in paths:
        path.write_bytes(saved("PNG", size))
    assert tasks.load(name).evaluate(Classes()).failed == []  # type: ignore[arg-type]


def test_a_grey_model_gets_grey_pictures_of_its_size(tmp_path: Path) -> None:
    name, paths = made_with_numbers("zeroshot-folders", tmp_path)
    for path in paths:
        path.write_bytes(saved("PNG", (64, 64)))
    fashion = catalogue.load("embedded:vit-fashion")
    assert fashion.pixels(Image.new("RGB", (64, 64))).shape == (1, 28, 28)
    grey = Two()
    grey.channels, grey.image_size = 1, (28, 28)
    grey.transform = lambda image: torch.zeros(len(image.getbands()), *image.size)
    with pytest.raises(BenchError, match=r"\(1, 28, 28\) and they are prepared as \(1, 64, 64\)"):
        tasks.load(name).evaluate(grey)  # type: ignore[arg-type]


# --- data of which no image decodes --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["missing", "empty", "a pipe", "bomb that is an error"])
@pytest.mark.parametrize("task", [*NAMING, *NUMBERING])
def test_no_image_decodes(tmp_path: Path, task: str, kind: str) -> None:
    form = {"zeroshot-folders": "zeroshot"}.get(task, task)
    if task in NAMING:
        name = made(task, tmp_path, [BAD])
        paths = [tmp_path / "i" / BAD]
        (tmp_path / "i" / GOOD).write_bytes(b"")
    else:
        name, paths = made_with_numbers(task, tmp_path)
        for file in tmp_path.rglob("*.*g"):
            file.write_bytes(b"")
    for path in paths:
        place(kind, path)
    names = ["images can be opened", form]
    refused(
        Bad(f"{task}, {kind}", [*RUN, name.replace(f"{tmp_path}", ".")], {}, None, names), tmp_path
    )


# --- rows ----------------------------------------------------------------------------------------

ODD: dict[str, Any] = {
    "a number": 7.5,
    "null": None,
    "a list": ["a"],
    "true": True,
}
POPE = {"question_id": 1, "image": GOOD, "text": "?", "label": "yes"}
NLVR2 = {"identifier": "dev-1-0-0", "sentence": "?", "label": "True", "directory": 1}
QUESTION = {"question_id": 1, "image_id": 1, "question": "?"}
ANSWERS = {"question_id": 1, "answers": [{"answer": "a"}], "answer_type": "other"}
KARPATHY = {"filename": GOOD, "split": "test", "filepath": "", "sentences": [{"raw": "a"}]}
KARPATHY |= {"cocoid": 1, "imgid": 2}
LISTED = {"image": GOOD, "caption": ["a"], "image_id": 1}
REFCOCO = {"image": GOOD, "sent": "a", "bbox": [0, 0, 9, 9], "width": 9, "height": 9}
MVBENCH = {"video": GOOD, "question": "?", "candidates": ["a", "b"], "answer": "a"}
NOCAPS = {"id": 1, "file_name": GOOD, "domain": "near-domain"}
WRITTEN = {"image_id": 1, "caption": "a"}


Written = Callable[[Any], tuple[str, dict[str, str]]]  # a row -> a task's name and its files


def pope(row: Any) -> tuple[str, dict[str, str]]:
    return "pope:p.json:.", {"p.json": lines([POPE, row])}


def nlvr2(row: Any) -> tuple[str, dict[str, str]]:
    return "nlvr2:p.json:.", {"p.json": lines([NLVR2, row])}


def refcoco(row: Any) -> tuple[str, dict[str, str]]:
    return "refcoco:p.jsonl:.", {"p.jsonl": lines([REFCOCO, row])}


def mvbench(row: Any) -> tuple[str, dict[str, str]]:
    return "mvbench:p.json:.", {"p.json": json.dumps([MVBENCH, row])}


def questions(row: Any) -> tuple[str, dict[str, str]]:
    data = {"data_subtype": "val2014", "questions": [{**QUESTION, "question_id": 0}, row]}
    return "vqav2:p.json:.", {"p.json": json.dumps(data)}


def answers(row: Any) -> tuple[str, dict[str, str]]:
    data = {"data_subtype": "val2014", "questions": [QUESTION]}
    people = {"annotations": [ANSWERS, row]}
    return "vqav2:q.json:p.json:.", {"q.json": json.dumps(data), "p.json": json.dumps(people)}


def karpathy(row: Any) -> tuple[str, dict[str, str]]:
    return "karpathy:p.json", {"p.json": json.dumps({"images": [KARPATHY, row]})}


def listed(row: Any) -> tuple[str, dict[str, str]]:
    return "rerank-karpathy:p.json", {"p.json": json.dumps([LISTED, row])}


def nocaps(row: Any) -> tuple[str, dict[str, str]]:
    data = {"images": [{**NOCAPS, "id": 0}, row], "annotations": [WRITTEN]}
    return "nocaps:p.json:.?tokens=plain", {"p.json": json.dumps(data)}


def written(row: Any) -> tuple[str, dict[str, str]]:
    data = {"images": [NOCAPS], "annotations": [WRITTEN, row]}
    return "nocaps:p.json:.?tokens=plain", {"p.json": json.dumps(data)}


def coop(row: Any) -> tuple[str, dict[str, str]]:
    rows = [[GOOD, 0, "a"], row]
    return "zeroshot:p", {"p/split_zhou_X.json": json.dumps({"test": rows})}


ROWS: list[tuple[Written, Any, str, str]] = []  # how it is written, the row, its place, the field
for write, good, takes in (
    (pope, POPE, {"question_id": (), "image": (), "text": (), "label": ()}),
    (nlvr2, NLVR2, {"identifier": (), "sentence": (), "label": ("true",), "directory": ()}),
    (refcoco, REFCOCO, {"image": (), "sent": ("a list",), "bbox": (), "height": ()}),
    (mvbench, MVBENCH, {"video": (), "question": (), "candidates": (), "answer": ()}),
    (questions, QUESTION, {"question_id": (), "image_id": (), "question": ()}),
    (answers, ANSWERS, {"question_id": (), "answers": ("a list",), "answer_type": ()}),
    (
        karpathy,
        KARPATHY,
        {"filename": (), "split": (), "sentences": (), "cocoid": (), "filepath": ()},
    ),
    (listed, LISTED, {"image": (), "caption": ("a list",), "image_id": ()}),
    (nocaps, NOCAPS, {"id": (), "file_name": (), "domain": ()}),
    (written, WRITTEN, {"image_id": (), "caption": ()}),
):
    for field, fine in takes.items():
        ROWS += [
            (write, {**good, field: value}, "row 2", field)
            for kind, value in ODD.items()
            if kind not in fine
        ]
    needed = [field for field in takes if field not in ("directory", "split", "cocoid", "filepath")]
    optional = {"pope": ["question_id"], "listed": ["image_id"], "nocaps": ["domain"]}
    ROWS += [
        (write, {key: one for key, one in good.items() if key != field}, "row 2", field)
        for field in needed
        if field not in optional.get(write.__name__, [])
    ]
    ROWS += [(write, row, "row 2", "") for row in (7, None, "text", [])]
ROWS += [
    (pope, {**POPE, "label": "maybe"}, "row 2", "yes or no"),
    (pope, {**POPE, "label": "Yes"}, "row 2", "yes or no"),
    (nlvr2, {**NLVR2, "label": "maybe"}, "row 2", "True or False"),
    (nlvr2, {**NLVR2, "identifier": "dev-1-0"}, "row 2", "SPLIT-GROUP-PAIR-NUMBER"),
    (refcoco, {**REFCOCO, "bbox": [0, 0, 9, "9"]}, "row 2", "a list of 4 numbers"),
    (refcoco, {**REFCOCO, "bbox": [9, 0, 0, 9]}, "row 2", "a box with an inside"),
    (refcoco, {**REFCOCO, "width": 0}, "row 2", "a number of pixels"),
    (mvbench, {**MVBENCH, "answer": "c"}, "row 2", "one of its candidates"),
    (mvbench, {**MVBENCH, "start": -1}, "row 2", "a number of seconds"),
    (questions, {**QUESTION, "question_id": 0}, "0 twice", ""),
    (answers, {**ANSWERS, "answers": []}, "row 2", "list of 1"),
    (answers, {**ANSWERS, "answers": [{"answer": 3}]}, "answers, row 1", "'answer' is 3"),
    (answers, {**ANSWERS, "answers": ["a"]}, "answers, row 1", "answer"),
    (karpathy, {**KARPATHY, "sentences": [{"raw": 5}]}, "sentences, row 1", "'raw' is 5"),
    (karpathy, {**KARPATHY, "sentences": ["a"]}, "sentences, row 1", "raw"),
    (listed, {**LISTED, "caption": ["a", 5]}, "row 2", "caption"),
    (nocaps, {**NOCAPS, "id": 0}, "0 twice", ""),
    (written, {**WRITTEN, "image_id": 9}, "row 2", "id of one of its images"),
    (coop, [GOOD, "0", "a"], "row 2", "a whole number"),
    (coop, [GOOD, 1.5, "a"], "row 2", "a whole number"),
    (coop, [GOOD, True, "a"], "row 2", "a whole number"),
    (coop, [GOOD, 5, "a"], "no class 1", ""),
    (coop, [GOOD, -1, "a"], "no class 1", ""),
    (coop, [7, 1, "a"], "row 2", "a text"),
    (coop, [None, 1, "a"], "row 2", "a text"),
    (coop, [[GOOD], 1, "a"], "row 2", "a text"),
    (coop, [GOOD, 1, None], "row 2", "a text"),
    (coop, [GOOD, 1, 7], "row 2", "a text"),
    (coop, [GOOD, 1], "row 2", "it has no 2"),
    (coop, [], "row 2", "it has no"),
    (coop, 7, "row 2", "it has no"),
    (coop, None, "row 2", "it has no"),
    (coop, "text", "row 2", "whole number"),
    (coop, {"path": GOOD}, "row 2", "it has no"),
]


# A seventh of them; EVERY_INPUT=1 runs all.
SOME = ROWS if os.environ.get("EVERY_INPUT") else ROWS[::7]


@pytest.mark.parametrize(("write", "row", "where", "what"), SOME)
def test_a_row_of_the_wrong_kind(
    tmp_path: Path, write: Written, row: Any, where: str, what: str
) -> None:
    name, files = write(row)
    file = next(file for file in files if file.startswith("p"))
    refused(Bad(f"{name}: {row}", [*RUN, name], dict(files), None, [file, where, what]), tmp_path)


# --- names of tasks ------------------------------------------------------------------------------


def data_for_names(folder: Path) -> None:
    """Data that every task can read, and a folder without images."""
    picture(folder / "i" / "a" / GOOD)
    picture(folder / "i" / GOOD)
    picture(folder / "i" / "COCO_val2014_000000000001.jpg")
    picture(folder / "i" / "dev-1-0-img0.png")
    (folder / "empty").mkdir()
    for write, row in ((pope, POPE), (nlvr2, NLVR2)):
        (folder / f"{write.__name__}.json").write_text(lines([row]))
    (folder / "karpathy.json").write_text(json.dumps({"images": [KARPATHY]}))
    (folder / "listed.json").write_text(json.dumps([LISTED]))
    (folder / "silent.json").write_text(json.dumps({"images": [{**KARPATHY, "sentences": []}]}))
    (folder / "nocaps.json").write_text(json.dumps({"images": [NOCAPS]}))
    data = {"data_subtype": "val2014", "questions": [QUESTION]}
    (folder / "q.json").write_text(json.dumps(data))


NAMES = {
    "karpathy:karpathy.json:empty": "none of 1 images can be opened",
    "karpathy:karpathy.json:nowhere": "nowhere",
    "karpathy:karpathy.json": "none of 1 images can be opened",
    "karpathy:karpathy.json:": "an empty path",
    "karpathy:karpathy.json:i:i": "i:i",
    "karpathy:karpathy.json:i?split=tset": "did you mean 'test'",
    "karpathy:karpathy.json:i?split=": "split ''",
    "karpathy:karpathy.json:i?split": "unknown option 'split'",
    "karpathy:karpathy.json:i?split=test&split=val": "twice",
    "karpathy:karpathy.json:i?spilt=test": "did you mean 'split'",
    "karpathy:karpathy.json:i?k=3": "unknown option 'k=3'",
    "karpathy:karpathy.json:i?split=" + "x" * 5000: "longer than 1000",
    "karpathy:listed.json:i?split=test": "without splits",
    "karpathy:silent.json:i": "has a caption",
    "karpathy:" + "x" * 5000: "longer than 1000",
    "karpathy:~nobody-at-all/x.json": "~nobody-at-all",
    "rerank-karpathy:karpathy.json:empty": "none of 1 images can be opened",
    "rerank-karpathy:karpathy.json:i?k=": "whole number from 1",
    "rerank-karpathy:karpathy.json:i?k=0": "whole number from 1",
    "rerank-karpathy:karpathy.json:i?k=-1": "whole number from 1",
    "rerank-karpathy:karpathy.json:i?k=1.5": "whole number from 1",
    "rerank-karpathy:karpathy.json:i?k=nan": "whole number from 1",
    "rerank-karpathy:karpathy.json:i?k=many": "whole number from 1",
    "rerank-karpathy:karpathy.json:i?k=" + "9" * 30: "at most 9 digits",
    "rerank-karpathy:karpathy.json:i?k=" + "9" * 900: "at most 9 digits",
    "rerank-karpathy:karpathy.json:i?split=dev": "no images with split 'dev'",
    "caption-karpathy:karpathy.json:empty": "none of 1 images can be opened",
    "caption-karpathy:karpathy.json:i?split=dev": "no images with split 'dev'",
    "caption-karpathy:karpathy.json:i?tokens=": "ptb or plain",
    "caption-karpathy:karpathy.json:i?metrics=rouge": "meteor and spice",
    "caption-karpathy:karpathy.json:i?prompt=" + "a " * 2000: "longer than 1000",
    "caption-karpathy:karpathy.json:i?prompt=a\0b": "cannot be printed",
    "nocaps:nocaps.json:empty": "none of 1 images can be opened",
    "nocaps:nocaps.json:i?split=val": "unknown option 'split=val'",
    "nocaps:nocaps.json": "names 1 paths, not 2",
    "nocaps:nocaps.json::": "names 3 paths, not 2",
    "nocaps:nocaps.json:": "an empty path",
    "nocaps:nocaps.json:i?prompt=\x1b[2J": "cannot be printed",
    "pope:pope.json:empty": "none of 1 images can be opened",
    "pope:pope.json:i?split=val": "it takes none",
    "nlvr2:nlvr2.json:empty": "none of 2 images can be opened",
    "nlvr2:nlvr2.json:i?split=dev": "it takes none",
    "vqav2:q.json:empty": "none of 1 images can be opened",
    "vqav2:q.json": "names 1 paths, not 2 or 3",
    "vqav2:q.json:q.json:i": "it has no 'annotations'",
    "vqav2:q.json:q.json": "none of 1 images can be opened",
    "vqav2:q.json:i?split=val": "it takes none",
    "imagefolder:empty": "no images in folders",
    "imagefolder:i?split=val": "it takes none",
    "imagefolder:" + "x" * 5000: "longer than 1000",
    "imagefolder:" + "x/" * 3000: "longer than 1000",
    "imagefolder:~nobody-at-all": "~nobody-at-all",
    "imagefolder:a\0b": "cannot be printed",
    "zeroshot:empty": "no images under empty",
    "zeroshot:i?prompt=a pet": "lacks {}",
    "zeroshot:i?prompt={": "lacks {}",
    "zeroshot:i?prompt={0}": "lacks {}",
    "zeroshot:i?prompt={name}": "lacks {}",
    "zeroshot:i?prompt=": "lacks {}",
    "zeroshot:i?templates=": "must be ensemble",
    "zeroshot:i?classes=old": "base or new",
    "zeroshot:i?names=nowhere.txt": "nowhere.txt",
    "zeroshot:i?names=empty": "empty is no regular file",
    "zeroshot:i?names=q.json": "names no folder 'a'",
    "zeroshot:i?names=" + "x" * 900: "too long",
    "zeroshot:" + "x" * 5000: "longer than 1000",
    "zeroshot:a\0b": "cannot be printed",
    "hf-dataset:empty": "cannot load data set",
    "hf-dataset:empty?split=val": "it takes none",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_task(tmp_path: Path, name: str) -> None:
    refused(Bad(name[:80], [*RUN, name], {}, data_for_names, [NAMES[name]]), tmp_path)


@pytest.mark.parametrize("prompt", ["{} {x}", "{}{}", "{{}} {}", "{} {", "a } of {}", "%s {}"])
def test_only_empty_braces_stand_for_a_name(tmp_path: Path, prompt: str) -> None:
    data_for_names(tmp_path)
    seen: list[str] = []
    fake = Two()
    fake.tokenizer = lambda texts: (seen.extend(texts), fake.words(texts))[1]
    tasks.load(f"zeroshot:{tmp_path}/i?prompt={prompt}").evaluate(fake)
    assert seen == [prompt.replace("{}", "a")]
