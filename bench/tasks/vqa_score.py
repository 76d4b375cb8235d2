"""How answers are scored: VQA's soft accuracy after its normalisation, POPE's yes or no.

Both follow the official programs to the letter, quirks included, so that scores compare.
Source: GT-Vision-Lab/VQA at v2.0 (vqaEval.py); RUCAIBox/POPE (evaluate.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
# A colon and an apostrophe are not in the list: "10:30" and "dog's" stay as they are.
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# Written right; an answer that lacks one apostrophe of these is given it.
RIGHT = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word
    for word in RIGHT.split()
    for at, sign in enumerate(word)
    if sign == "'"
} | {"somebody'd": "somebodyd"}  # the official table has this one the wrong way round
_NUMBER_WITH_COMMA = re.compile(r"\d,\d")
# Meant to spare points between digits; as it stands in the official program, it spares every point
# that stands before a digit.
_POINT = re.compile(r"\.(?!\d)")
NEEDED = 3  # people who have to agree with an answer for the full score


def without_punctuation(answer: str) -> str:
    """Drop punctuation that touches a space (or any, beside a "1,000"); else make it a space."""
    has_number = _NUMBER_WITH_COMMA.search(answer) is not None
    out = answer
    for sign in PUNCTUATION:
        touches = f"{sign} " in answer or f" {sign}" in answer
        out = out.replace(sign, "" if touches or has_number else " ")
    return _POINT.sub("", out)


def plain_words(answer: str) -> str:
    """Lower case, number words as digits, no articles, contractions with their apostrophe."""
    words = (NUMBERS.get(word, word) for word in answer.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


@lru_cache(maxsize=1 << 17)  # VQAv2 asks for two million, most of them "yes", "no" and "2"
def normalised_answer(answer: str) -> str:
    """Return an answer as the official evaluation compares it."""
    return plain_words(without_punctuation(_stripped(answer)))


def soft_accuracy(answer: str, right: Sequence[str]) -> float:
    """Return VQA's accuracy of an answer against those of ten people.

    The mean, over the people, of min(1, how many of the other people gave the answer / 3). Where
    all people gave the same answer nothing is normalised: the answer has to be theirs exactly.
    """
    answer, people = _stripped(answer), [_stripped(one) for one in right]
    if len(set(people)) > 1:
        answer, people = normalised_answer(answer), [normalised_answer(one) for one in people]
    agreed = sum(one == answer for one in people)
    scores = [min(1.0, (agreed - (one == answer)) / NEEDED) for one in people]
    return sum(scores) / len(scores)


def _stripped(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def yes_or_no(answer: str) -> str:
    """Return "no" where the first sentence has the word no or not, else "yes".

    Words stand between spaces alone, and no answer at all is a yes, as in the official program.
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"
