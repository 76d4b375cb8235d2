"""Captions against references: scores a hand can get, files as they come, and what is missing."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import Answering, picture, shade

from bench import tasks
from bench.core.errors import BenchError, Unsupported
from bench.tasks import caption_score
from bench.tasks.captioning import PROMPTS, Captioning

pytest.importorskip("pycocoevalcap", reason="the extra `caption` is not installed")
java = pytest.mark.skipif(not caption_score.has_java(), reason="no Java here")

ROWS = [  # split, references, what the fake model writes
    ("train", ["never seen"], ""),
    ("test", ["A small red dog sits.", "Grass grows here"], "a small red dog sits"),
    ("test", ["red dog"], "Red cat!"),
    ("test", ["blue"], "blue"),
    ("val", ["never seen"], ""),
    ("test", ["green car"], ""),  # its picture does not decode
]


def coco(folder: Path) -> str:
    rows = [
        {
            "filename": f"{i}.png",
            "filepath": "val2014",
            "cocoid": 100 + i,
            "split": split,
            "sentences": [{"raw": text, "tokens": []} for text in texts],
        }
        for i, (split, texts, _) in enumerate(ROWS)
    ]
    for i in range(5):
        picture(folder / "images" / "val2014" / f"{i}.png", 10 * i)
    (folder / "images" / "val2014" / "5.png").write_bytes(b"no picture")
    (folder / "coco.json").write_text(json.dumps({"images": rows, "dataset": "coco"}))
    return f"caption-karpathy:{folder}/coco.json:{folder}/images"


def write(images: list[Any], text: str) -> str:
    assert text == PROMPTS["captioner"]
    return text + ROWS[shade(images[0]) // 10][2]


def test_a_karpathy_file_is_scored_to_what_a_hand_gets(tmp_path: Path) -> None:
    task = tasks.load(coco(tmp_path) + "?tokens=plain")
    assert isinstance(task, Captioning) and len(task) == 4
    seen: list[tuple[int, int]] = []
    model = Answering("captioner", write)
    scored = task.evaluate(model, batch_size=3, progress=lambda *a: seen.append(a))  # type: ignore[arg-type]
    assert seen == [(3, 4), (4, 4)]
    assert scored.outcomes["caption"] == ["a small red dog sits", "Red cat!", "blue", ""]
    # CIDEr, the mean over n-grams of 1 to 4 tokens, over references, times 10 (here 1,000):
    # 1: the first reference exactly, 1 for every n; nothing of the second: 1/2.
    # 2: one of two tokens, and no pair. "red" is in the references of two of the four images,
    #    "dog" too, "cat" in none: weights ln 2, ln 2, ln 4. Clipped product over both lengths:
    #    (ln 2)^2 / (ln 2 sqrt(1 + 4) ln 2 sqrt(1 + 1)) = 1 / sqrt(10), a quarter of that over n.
    # 3: one token, right; there are no longer n-grams: 1/4. 4: nothing said: 0.
    assert scored.outcomes["cider_plain"] == pytest.approx([500, 250 / math.sqrt(10), 250, 0])
    assert scored.primary == "cider_plain"
    mean = scored.metrics["cider_plain"]
    assert mean.value == pytest.approx((750 + 250 / math.sqrt(10)) / 4) and mean.unit == "×100"
    # ROUGE-L: 1; precision and recall 1/2; 1; 0.
    assert scored.outcomes["rouge_l_plain"] == pytest.approx([1, 0.5, 1, 0])
    # BLEU: of 5 + 2 + 1 + 0 tokens 5 + 1 + 1 are right, of 4 + 1 pairs 4, of 3 threes 3, of 2
    # fours 2. 8 tokens against 5 + 2 + 1 + 2 of the references nearest in length.
    bleu = math.exp(1 - 10 / 8) * (7 / 8 * 4 / 5) ** (1 / 4)
    assert scored.metrics["bleu4_plain"].value == pytest.approx(100 * bleu, abs=1e-3)
    assert scored.failed == ["val2014/5.png"]
    assert json.loads(task.submission(scored.outcomes))[1] == {
        "image_id": 102,
        "caption": "Red cat!",
    }


def test_words_weigh_as_in_the_whole_set_under_a_limit(tmp_path: Path) -> None:
    task = tasks.load(coco(tmp_path) + "?tokens=plain")
    model = Answering("captioner", write)
    whole = task.evaluate(model)  # type: ignore[arg-type]
    some = task.evaluate(model, limit=2)  # type: ignore[arg-type]
    at = [whole.outcomes["caption"].index(text) for text in some.outcomes["caption"]]
    assert some.outcomes["cider_plain"] == [whole.outcomes["cider_plain"][i] for i in at]
    numbers = [row["image_id"] for row in json.loads(task.submission(some.outcomes))]  # type: ignore[attr-defined]
    assert numbers == [[101, 102, 103, 105][i] for i in at]


def test_blips_list_of_images_has_cocos_numbers_in_its_names(tmp_path: Path) -> None:
    rows = [
        {"image": "val2014/COCO_val2014_000000391895.jpg", "caption": ["red", "dog"]},
        {"image": "7.jpg", "caption": "blue"},
    ]
    for row in rows:
        picture(tmp_path / str(row["image"]), 10)
    (tmp_path / "list.json").write_text(json.dumps(rows))
    task = tasks.load(f"caption-karpathy:{tmp_path}/list.json?tokens=plain")
    sent = json.loads(task.submission({"caption": ["a", "b"]}))  # type: ignore[attr-defined]
    assert sent == [{"image_id": 391895, "caption": "a"}, {"image_id": 1, "caption": "b"}]


def nocaps(folder: Path, domains: bool = True) -> str:
    data: dict[str, Any] = {"images": [], "annotations": []}
    for i, domain in enumerate(["in-domain", "out-domain", "in-domain"]):
        row = {"id": i, "file_name": f"{i}.jpg", "open_images_id": "x", "domain": domain}
        data["images"].append(row)
        data["annotations"].append({"id": i, "image_id": i, "caption": ["red", "blue", "green"][i]})
        picture(folder / "pictures" / f"{i}.jpg", 40 * i)
    (folder / "nocaps.json").write_text(json.dumps(data))
    return f"nocaps:{folder}/nocaps.json:{folder}/pictures"


def test_nocaps_tells_each_domain(tmp_path: Path) -> None:
    task = tasks.load(nocaps(tmp_path) + "?tokens=plain&prompt=What is it?")

    def say(images: list[Any], text: str) -> str:
        assert text == "What is it?"
        return "Red." if 20 < shade(images[0]) < 60 else "green"

    scored = task.evaluate(Answering("multimodal", say))  # type: ignore[arg-type]
    # "green", "Red.", "green" for red, blue, green: one single token right, 1/4 of 1,000.
    assert scored.outcomes["cider_plain"] == pytest.approx([0, 0, 250])
    assert scored.metrics["cider_plain_in_domain"].value == pytest.approx(125)
    assert scored.metrics["cider_plain_out_domain"].value == 0


@java
def test_the_penn_treebank_gives_the_official_tokens_and_the_plain_ones_nearly(
    tmp_path: Path,
) -> None:
    texts = [
        "A man's dog isn't here, ok?",
        "",
        "Two  black-and-white\ncats; 1,000 of them.",
        "(x) & #7 at 10:30 a.m., St. John's",
        "1 1/2 dogs",
    ]
    official = caption_score.tokenised(texts, "ptb")
    assert official == [
        "a man 's dog is n't here ok",
        "",
        "two black-and-white cats 1,000 of them",
        "-lrb- x -rrb- & # 7 at 10:30 a.m. st. john 's",  # the official list keeps these brackets
        "1\N{NO-BREAK SPACE}1/2 dogs",
    ]
    assert caption_score.tokenised(texts, "plain") == [*official[:4], "1 1/2 dogs"]
    scored = tasks.load(coco(tmp_path)).evaluate(Answering("captioner", write))  # type: ignore[arg-type]
    assert scored.primary == "cider" and set(scored.metrics) == {"cider", "bleu4", "rouge_l"}
    assert scored.outcomes["cider"][0] == pytest.approx(500)


@java
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # METEOR's own pipes
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_meteor_where_it_is_asked_for(tmp_path: Path) -> None:
    task = tasks.load(coco(tmp_path) + "?metrics=meteor")
    scored = task.evaluate(Answering("captioner", write))  # type: ignore[arg-type]
    assert scored.primary == "cider"
    assert 0 < scored.metrics["meteor"].value < 100 and scored.metrics["meteor"].ci95 is None


@java
def test_a_java_that_fails_is_no_silent_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_score, "PTB_MAIN", "no.such.Program")
    with pytest.raises(BenchError, match="Java's tokenizer failed .*say tokens=plain"):
        caption_score.tokenised(["a dog"], "ptb")


def test_without_java_the_names_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_score, "has_java", lambda: False)
    scored = tasks.load(coco(tmp_path)).evaluate(Answering("captioner", write))  # type: ignore[arg-type]
    assert set(scored.metrics) == {"cider_plain", "bleu4_plain", "rouge_l_plain"}
    with pytest.raises(BenchError, match="needs Java: install a Java runtime"):
        tasks.load(coco(tmp_path) + "?tokens=ptb")
    asked = tasks.load(coco(tmp_path) + "?metrics=meteor")
    with pytest.raises(BenchError, match="meteor needs Java"):
        asked.evaluate(Answering("captioner", write))  # type: ignore[arg-type]


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tasks.load(coco(tmp_path) + "?tokens=plain")
    with pytest.raises(Unsupported, match="needs a captioner or multimodal model"):
        task.evaluate(Answering("answerer", write))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
    with pytest.raises(BenchError, match="pip install pycocoevalcap"):
        task.evaluate(Answering("captioner", write))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("caption-karpathy:{0}/nocaps.json:{0}/images", "no Karpathy-style file"),
        ("caption-karpathy:{0}/no.json", "cannot read"),
        ("caption-karpathy:{0}/coco.json:{0}/else", "cannot read .*else"),
        ("caption-karpathy:{0}/coco.json?token=plain", "did you mean 'tokens'"),
        ("caption-karpathy:{0}/coco.json:{0}/images?tokens=x", "must be ptb or plain"),
        ("caption-karpathy:{0}/coco.json:{0}/images?metrics=rouge", "unknown metric 'rouge'"),
        ("nocaps:{0}/coco.json:{0}/images", "no NoCaps file"),
        ("nocaps:{0}/nocaps.json", "names 1 paths, not 2"),
        ("nocaps:{0}/bare.json:{0}/pictures", "0.jpg has no reference caption"),
    ],
)
def test_wrong_files_are_one_clear_line(tmp_path: Path, name: str, message: str) -> None:
    coco(tmp_path), nocaps(tmp_path)
    bare = {**json.loads((tmp_path / "nocaps.json").read_text()), "annotations": []}
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    with pytest.raises(BenchError, match=message) as error:
        tasks.load(name.format(tmp_path))
    assert "\n" not in str(error.value)
