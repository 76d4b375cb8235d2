"""Statements about two scenes are what they say, and their kinds are balanced."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from bench.tasks import scenes, statements


@pytest.fixture(scope="module")
def found() -> list[statements.Pair]:
    return statements.pairs(400, seed=0)


def test_a_seed_makes_the_same_pairs(found: list[statements.Pair]) -> None:
    again = statements.pairs(5, seed=0)
    for one, other in zip(again, found, strict=False):
        assert (one.text, one.true, one.kind) == (other.text, other.true, other.kind)
        assert all(map(np.array_equal, one.images, other.images))
    assert [p.text for p in statements.pairs(5, seed=1)] != [p.text for p in again]


def test_each_kind_is_true_as_often_as_false(found: list[statements.Pair]) -> None:
    count = Counter((pair.kind, pair.true) for pair in found)
    assert len(count) == 2 * len(statements.KINDS)
    assert all(30 < n < 70 for n in count.values())


def test_statements_are_true_where_they_say_so(found: list[statements.Pair]) -> None:
    for pair in found:
        names = [{thing.name for thing in own.values()} for own in pair.objects]
        words = pair.text.split()
        sides = [side for side in ("left", "right") if words[-3] == side]
        if pair.kind == "both":
            assert pair.true == all(words[3] in own for own in names)
        elif pair.kind == "only":
            here = names[0] if sides == ["left"] else names[1]
            other = names[1] if sides == ["left"] else names[0]
            assert pair.true == (words[3] in here and words[3] not in other)
        elif pair.kind == "more":
            left, right = map(len, pair.objects)
            assert pair.true == (left > right if sides == ["left"] else right > left)
        else:
            own = pair.objects[0 if sides == ["left"] else 1]
            cell = scenes.PLACES.index(" ".join(words[6:8]))
            assert pair.true == (own[cell].name == words[3])


def test_a_statement_is_true_where_both_images_fit(found: list[statements.Pair]) -> None:
    for pair in found:
        assert (pair.fits == ()) == (pair.kind == "more")
        assert not pair.fits or (len(pair.fits) == 2 and all(pair.fits) == pair.true)
    alone = [pair.fits for pair in found if pair.kind == "only"]
    assert len(set(alone)) > 2  # either image can be at fault


def test_all_but_place_need_both_images(found: list[statements.Pair]) -> None:
    """What is said and the image named alone decide `place`, and nothing else, in all cases."""
    more = statements.pairs(1200, seed=3)
    for kind in ("both", "only", "more"):
        known: dict[tuple[str, tuple[str, ...]], set[bool]] = {}
        for pair in more:
            if pair.kind == kind:
                side = 0 if "left" in pair.text else 1
                things = tuple(sorted(t.name for t in pair.objects[side].values()))[:1]
                known.setdefault((pair.text, things), set()).add(pair.true)
        assert any(len(answers) == 2 for answers in known.values()), kind


def test_every_word_is_known(found: list[statements.Pair]) -> None:
    known = set(statements.words())
    assert {word for pair in found for word in pair.text.split()} <= known
