"""Multiple choice: how it is put to a language model, and which option an answer means.

A model that explains itself, writes the option out or says "(B)" has chosen; what fits no option,
or several, is wrong. No option is taken in place of an answer that names none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

ASKED = "Answer with the option's letter from the given choices directly."
MOST = len(ascii_uppercase)  # options

# "B", "(b)", "**B**", "B. a dog", "B) a dog"
_BEGINS = re.compile(r"^[\W_]*([A-Z])(?:[\W_]*$|[.):\]*,])", re.IGNORECASE)
# "The answer is B", "Option (B)", "answer: B, as ..."; in "the answer is A dog" it is an article.
_SAYS = re.compile(
    r"\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*[(\[*\"']*([B-Z]\b|A\b(?!\s+\w))",
    re.IGNORECASE,
)
_LETTER = re.compile(r"^([A-Z])\s*[.):]\s*")


def question(text: str, options: Sequence[str]) -> str:
    """Return a question with its options, a letter each."""
    lines = [
        f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False)
    ]
    return "\n".join([text, "Options:", *lines, ASKED])


def unlettered(options: Sequence[str]) -> list[str]:
    """Return options without the letters that they begin with, where those are A, B, C..."""
    matches = [_LETTER.match(option) for option in options]
    letters = "".join(match[1] if match else "" for match in matches)
    if letters != ascii_uppercase[: len(options)]:
        return list(options)
    return [option[match.end() :] for option, match in zip(options, matches, strict=True) if match]


def chosen(answer: str, options: Sequence[str]) -> int | None:
    """Return which option an answer means, from 0; None where it is none, or unclear."""
    answer = answer.strip()
    if letter := _BEGINS.match(answer) or _SAYS.search(answer):
        place = ascii_uppercase.index(letter[1].upper())
        return place if place < len(options) else None
    words = _words(answer)
    exact = [i for i, option in enumerate(options) if _words(option) == words]
    within = [i for i, option in enumerate(options) if f" {_words(option)} " in f" {words} "]
    fits = exact or within
    return fits[0] if len(fits) == 1 else None


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
