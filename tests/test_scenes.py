"""Scenes are the same for the same seed, and their answers are what was drawn."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from bench.tasks import scenes


@pytest.fixture(scope="module")
def found() -> list[scenes.Scene]:
    return scenes.scenes(500, seed=0)


def test_every_name_is_one_known_word_with_a_drawing() -> None:
    drawn = scenes.library()
    assert 4 < len(drawn) == len(scenes.NAMES)
    assert set(drawn) <= set(scenes.words())
    assert all(drawing.shape == (64, 64, 3) for drawing in drawn.values())


def test_a_seed_makes_the_same_scenes_and_a_longer_list_begins_alike(
    found: list[scenes.Scene],
) -> None:
    again = scenes.scenes(20, seed=0)
    for one, other in zip(again, found, strict=False):
        assert one.question == other.question and one.answer == other.answer
        assert np.array_equal(one.image, other.image)
    assert [s.question for s in scenes.scenes(20, seed=1)] != [s.question for s in again]


def test_kinds_take_turns_and_yes_is_as_frequent_as_no(found: list[scenes.Scene]) -> None:
    assert set(Counter(scene.kind for scene in found).values()) == {100}
    answers = Counter(scene.answer for scene in found if scene.kind == "there")
    assert set(answers) == {"yes", "no"} and abs(answers["yes"] - 50) < 20
    assert set(scene.answer for scene in found if scene.kind == "many") == set(scenes.NUMBERS)
    assert set(scene.answer for scene in found if scene.kind == "where") == set(scenes.PLACES)


def test_every_question_and_answer_is_made_of_known_words(found: list[scenes.Scene]) -> None:
    known = set(scenes.words())
    for scene in found:
        assert set(f"{scene.question} {scene.answer}".split()) <= known


def test_drawings_are_where_the_scene_says() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        image, objects = scenes.compose(rng)
        assert image.shape == (scenes.SIDE, scenes.SIDE, 3) and image.dtype == np.uint8
        outside = np.ones((scenes.SIDE, scenes.SIDE), bool)
        for cell, found in objects.items():
            rows = slice(found.top, found.top + found.side)
            columns = slice(found.left, found.left + found.side)
            outside[rows, columns] = False
            half = scenes.CELL
            assert found.top // half == (found.top + found.side - 1) // half == cell // 2
            assert found.left // half == (found.left + found.side - 1) // half == cell % 2
            inside = image[rows, columns].astype(int)
            assert np.abs(np.diff(inside, axis=1)).max() > 6  # a ground is smooth
        assert image[outside].min() >= 170


def test_answers_are_what_is_in_the_cells() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        _, placed = scenes.compose(rng)
        objects = {cell: found.name for cell, found in placed.items()}
        question, answer = scenes.ask("what", placed, rng)
        assert objects[scenes.PLACES.index(question[len("what is at the ") : -2])] == answer
        question, answer = scenes.ask("where", placed, rng)
        assert objects[scenes.PLACES.index(answer)] == question[len("where is the ") : -2]
        question, answer = scenes.ask("there", placed, rng)
        assert (question[len("is there a ") : -2] in objects.values()) == (answer == "yes")
        assert scenes.ask("many", placed, rng)[1] == scenes.NUMBERS[len(objects) - 1]
        caption = scenes.ask("caption", placed, rng)[1]
        assert caption.split(" and ") == [objects[cell] for cell in sorted(objects)]


def test_a_caption_names_things_from_the_first_place_to_the_last() -> None:
    placed = {3: scenes.Placed("sun", 40, 40, 14), 1: scenes.Placed("cat", 0, 40, 14)}
    assert scenes.describe(placed) == "a cat at the top right and a sun at the bottom right"
