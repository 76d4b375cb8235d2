"""Re-ranking by matches: against a plain loop, by hand, and with a broken picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import picture
from torch import Tensor

from bench import tasks
from bench.core.errors import BenchError, Unsupported
from bench.models.loaded import Matcher, TwoTower
from bench.tasks import reranking
from bench.tasks.reranking import nearest

IMAGES, EACH = 9, 2
TEXTS = IMAGES * EACH


class Fake(Matcher):
    """Knows images by their shade and texts by their number; similarities and matches are given."""

    device, dtype = torch.device("cpu"), torch.float32
    __setattr__ = object.__setattr__  # models are frozen

    def __init__(self, similar: Tensor, matches: Tensor) -> None:
        super().__init__("fake", None, (1, 1), 1, self.shaded, tokenizer=self.numbered)
        self.seen = 0
        # Features whose products are the similarities: one side is the identity.
        self.similar, self.matches = similar, matches

    def shaded(self, image: Any) -> Tensor:
        return torch.tensor([[[np.asarray(image.convert("L"))[0, 0] // 20]]], dtype=torch.float32)

    def numbered(self, texts: list[str]) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor([[int(text)] for text in texts])}

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        at = pixels[:, 0, 0, 0].long()
        return self.similar[at], at.view(-1, 1, 1).expand(-1, 3, 4).float()

    def encode_texts(self, inputs: dict[str, Tensor]) -> Tensor:
        return torch.eye(TEXTS)[inputs["input_ids"][:, 0]]

    def match(self, tokens: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        assert tokens.shape[1:] == (3, 4) and len(tokens) == len(inputs["input_ids"])
        self.seen += len(tokens)
        return self.matches[tokens[:, 0, 0].long(), inputs["input_ids"][:, 0]]


@pytest.fixture
def matcher() -> Fake:
    random = torch.Generator().manual_seed(0)
    shape = (IMAGES, TEXTS)
    return Fake(torch.rand(shape, generator=random), torch.randn(shape, generator=random))


def data(folder: Path, broken: int | None = None) -> str:
    rows = []
    for i in range(IMAGES):
        path = picture(folder / "images" / f"{i}.png", 20 * i)
        if i == broken:
            path.write_bytes(b"no picture")
        sentences = [{"raw": str(EACH * i + j)} for j in range(EACH)]
        rows.append({"filename": path.name, "split": "test", "sentences": sentences})
    (folder / "data.json").write_text(json.dumps({"images": rows}))
    return f"rerank-karpathy:{folder}/data.json:{folder}/images"


def plain(similar: Tensor, matches: Tensor, own: Tensor, k: int) -> list[int]:
    """The official procedure, a query at a time; never found where outside the nearest."""
    ranks = []
    for query in range(len(similar)):
        near = similar[query].topk(k).indices.tolist()
        order = sorted(near, key=lambda i: float(-(similar[query, i] + matches[query, i])))
        hits = [place for place, i in enumerate(order) if own[query, i]]
        others = int((~own[query]).sum())
        ranks.append(min(hits) if hits else others)
    return ranks


@pytest.mark.parametrize("k", [1, 4, 9])
@pytest.mark.parametrize("batch_size", [2, 64])
def test_ranks_are_those_of_a_plain_loop(
    tmp_path: Path, matcher: Fake, k: int, batch_size: int
) -> None:
    task = tasks.load(data(tmp_path) + f"?k={k}")
    scored = task.evaluate(matcher, batch_size=batch_size)  # type: ignore[arg-type]
    own = torch.arange(TEXTS) // EACH == torch.arange(IMAGES).unsqueeze(1)
    similar, matches = matcher.similar, matcher.matches
    assert scored.outcomes["rank_t2i"] == plain(similar.T, matches.T, own.T, k)
    # Ranks of images count the wrong texts before the best right one.
    expected = plain(similar, matches, own, k)
    assert [min(r, TEXTS - EACH) for r in expected] == scored.outcomes["rank_i2t"]
    assert set(scored.metrics) == {f"{w}_r{n}" for w in ("i2t", "t2i") for n in (1, 5, 10)}


@pytest.mark.parametrize("k", [1, 3, 5, 9])
def test_the_nearest_are_those_of_a_stable_sort(k: int) -> None:
    random = torch.Generator().manual_seed(1)
    scores = torch.randint(0, 4, (50, 7), generator=random).float()  # full of ties
    scores[:5, 3] = -torch.inf
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    expected = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)
    assert torch.equal(nearest(scores, k), expected)
    assert nearest(torch.tensor([[torch.nan, 1.0, torch.nan]]), 1).tolist() == [
        [False, True, False]
    ]


def test_a_pair_both_ways_is_matched_once(tmp_path: Path, matcher: Fake) -> None:
    tasks.load(data(tmp_path)).evaluate(matcher)  # type: ignore[arg-type]
    assert matcher.seen == IMAGES * TEXTS


def test_a_match_can_lift_what_features_put_second_but_nothing_further(tmp_path: Path) -> None:
    similar = torch.zeros(IMAGES, TEXTS)
    matches = torch.zeros(IMAGES, TEXTS)  # logits: what is not matched has none, not zero
    similar[0, 5], similar[0, 0] = 0.9, 0.8  # its own text is second: 0.8 - 2 is above 0.9 - 3
    matches[0, 5], matches[0, 0] = -3, -2
    similar[1, 5], similar[1, 6], similar[1, 2] = 0.9, 0.8, 0.7  # third: out of reach at k=2
    matches[1, 5], matches[1, 6], matches[1, 2] = -3, -3, 9
    # sure of both: 0.1 + 6 is above 0.9 + 5, though the probabilities, 0.998 and 0.993, say no
    similar[2, 7], similar[2, 4] = 0.9, 0.1
    matches[2, 7], matches[2, 4] = 5, 6
    task = tasks.load(data(tmp_path) + "?k=2")
    ranks = task.evaluate(Fake(similar, matches)).outcomes["rank_i2t"]  # type: ignore[arg-type]
    assert ranks[:3] == [0, TEXTS - EACH, 0]


def test_a_picture_that_does_not_decode_is_never_found(tmp_path: Path, matcher: Fake) -> None:
    scored = tasks.load(data(tmp_path, broken=4)).evaluate(matcher, batch_size=4)  # type: ignore[arg-type]
    assert scored.failed == ["4.png"]
    assert scored.outcomes["rank_i2t"][4] == TEXTS - EACH
    assert scored.outcomes["rank_t2i"][8:10] == [IMAGES - 1] * 2
    assert matcher.seen == (IMAGES - 1) * TEXTS


def test_k_is_part_of_the_task(tmp_path: Path, matcher: Fake) -> None:
    name = data(tmp_path)
    by_default, more = tasks.load(name), tasks.load(name + "?k=256")
    assert by_default.k == 128 and more.k == 256  # type: ignore[attr-defined]
    assert by_default.version != more.version
    limited = by_default.evaluate(matcher, limit=3)  # type: ignore[arg-type]
    assert limited.metrics["t2i_r1"].n == 6


@pytest.mark.parametrize(("few", "k"), [(IMAGES, 128), (IMAGES - 1, 256)])
def test_larger_sets_are_re_ranked_further(
    tmp_path: Path, few: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reranking, "FEW_IMAGES", few)
    assert tasks.load(data(tmp_path)).k == k  # type: ignore[attr-defined]


def test_mistakes_are_one_clear_line(tmp_path: Path, matcher: Fake) -> None:
    name = data(tmp_path)
    with pytest.raises(BenchError, match="k='0' in rerank-karpathy.* whole number from 1"):
        tasks.load(name + "?k=0")
    with pytest.raises(BenchError, match="unknown option 'top=3'"):
        tasks.load(name + "?top=3")
    with pytest.raises(BenchError, match="cannot read .*imagesx"):
        tasks.load(name + "x")
    with pytest.raises(Unsupported, match="needs a matcher model; fake is a two-tower"):
        tasks.load(name).evaluate(TwoTower("fake", None, (1, 1)))
