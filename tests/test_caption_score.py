"""What is done around the official caption scorers, which stand-ins replace: so it runs anywhere.

What the scorers themselves say is tested in test_captioning.py, where they are installed.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes import Answering

from bench.tasks import caption_score
from bench.tasks.caption_score import plain_tokens
from bench.tasks.captioning import Captioning
from bench.tasks.pictures import Arrays

Texts = dict[int, list[str]]


def shared(references: Texts, captions: Texts) -> list[float]:
    """Of each image in turn, the share of its references' words that its caption has."""
    assert list(references) == list(captions)
    shares = []
    for image, texts in references.items():
        words = {word for text in texts for word in text.split()}
        shares.append(len(words & set(captions[image][0].split())) / len(words))
    return shares


class Bleu:
    def __init__(self, n: int) -> None:
        assert n == 4

    def compute_score(self, references: Texts, captions: Texts, verbose: int) -> tuple[Any, None]:
        assert list(references) == list(captions)
        return [0.8, 0.6, 0.4, 0.2], None


def mean_and_each(references: Texts, captions: Texts) -> tuple[float, Any]:
    each = np.array(shared(references, captions))
    return float(each.mean()), each


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = SimpleNamespace(compute_score=mean_and_each)
    module = SimpleNamespace(Cider=lambda: scorer, Rouge=lambda: scorer, Bleu=Bleu)
    monkeypatch.setattr(caption_score, "scorer", lambda name: module)


def task() -> Captioning:
    """Four pictures of shades 0 to 3; the third has two references."""
    return Captioning(
        "fake",
        "1",
        Arrays(np.arange(4, dtype=np.uint8).reshape(-1, 1, 1)),
        [["Red dog"], ["blue"], ["green car", "a car"], ["a sun"]],
        range(4),
        domains=["in-domain", "out-domain", "in-domain", "out-domain"],
        prompt="This is",
        tokens="plain",
    )


SAID = ["this was red", "BLUE", "car", "fire"]


def write(images: list[Any], prompt: str) -> str:
    return f"{prompt} {SAID[np.asarray(images[0])[0, 0, 0]]}"


def test_scores_keep_their_images_and_their_units() -> None:
    scored = task().evaluate(Answering("captioner", write))  # type: ignore[arg-type]
    assert scored.outcomes["caption"] == SAID
    # One of "red dog", "blue" itself, one of "green", "car" and "a", nothing of "a sun".
    assert scored.outcomes["cider_plain"] == pytest.approx([50, 100, 100 / 3, 0])
    assert scored.outcomes["rouge_l_plain"] == pytest.approx([0.5, 1, 1 / 3, 0])
    mean = (0.5 + 1 + 1 / 3) / 4
    assert {name: metric.value for name, metric in scored.metrics.items()} == pytest.approx(
        {
            "cider_plain": 100 * mean,
            "bleu4_plain": 20,
            "rouge_l_plain": 100 * mean,
            "cider_plain_in_domain": (50 + 100 / 3) / 2,
            "cider_plain_out_domain": 50,
        }
    )
    assert scored.primary == "cider_plain"


def test_under_a_limit_each_caption_keeps_its_score() -> None:
    some = task().evaluate(Answering("captioner", write), limit=2)  # type: ignore[arg-type]
    at = [SAID.index(text) for text in some.outcomes["caption"]]
    assert at != [0, 1]  # spread over the data
    assert some.outcomes["cider_plain"] == pytest.approx([[50, 100, 100 / 3, 0][i] for i in at])


def test_official_tokens_have_the_official_names() -> None:
    said, references = {0: "a dog"}, {0: ["a dog"], 1: ["blue"]}
    assert set(caption_score.score(said, references, "ptb").metrics) == {
        "cider", "bleu4", "rouge_l",
    }  # fmt: skip


def test_plain_tokens_are_lower_case_without_punctuation() -> None:
    assert plain_tokens("A man's dog isn't HERE, ok?") == "a man 's dog is n't here ok"
