"""The tasks on scenes of emoji drawings: captions, statements about pairs, captions to be found.

Nothing of them is stored: scenes and texts are composed from the committed drawings by a seed.
"""

from __future__ import annotations

import numpy as np

from bench.tasks import scenes, statements
from bench.tasks.base import hash_of
from bench.tasks.captioning import Captioning
from bench.tasks.pictures import Arrays
from bench.tasks.reasoning import Reasoning, Statement
from bench.tasks.registry import task
from bench.tasks.reranking import ReRanking

SCENES, PAIRS, SEED = 1000, 1000, 0
QUERIES, NEAREST = 500, 64  # scenes to be found, and how many of them are compared again


@task(
    "emoji-captions",
    "1,000 scenes of emoji drawings, and what is where in them (CIDEr, BLEU-4, ROUGE-L)",
)
def captioning() -> Captioning:
    """Return scenes with the caption that says what is where."""
    images, texts = zip(*scenes.described(SCENES, SEED), strict=True)
    pixels = np.stack(images)
    version = hash_of(pixels.tobytes(), texts)
    pictures = Arrays(pixels, "scene")
    # Plain tokens: the texts have no punctuation that the official tokeniser would treat otherwise.
    return Captioning(
        "emoji-captions",
        version,
        pictures,
        [[text] for text in texts],
        range(len(texts)),
        prompt="",
        tokens="plain",
    )


@task(
    "emoji-rerank", "500 scenes of emoji drawings against their captions, the 64 nearest re-ranked"
)
def reranking() -> ReRanking:
    """Return scenes that differ in what is where, to be found by their captions."""
    images, texts = zip(*scenes.described(2 * QUERIES, SEED), strict=True)
    first = {text: i for i, text in reversed(list(enumerate(texts)))}
    chosen = sorted(first.values())[:QUERIES]
    pixels, captions = np.stack([images[i] for i in chosen]), [[texts[i]] for i in chosen]
    version = hash_of(pixels.tobytes(), captions)
    return ReRanking("emoji-rerank", version, Arrays(pixels, "scene"), captions, NEAREST)


@task(
    "emoji-reasoning", "1,000 statements about two scenes of emoji drawings each, half of them true"
)
def reasoning() -> Reasoning:
    """Return statements about pairs of scenes."""
    composed = statements.pairs(PAIRS, SEED)
    images = np.stack([image for pair in composed for image in pair.images])
    claims = [
        Statement(f"{pair.kind}-{i}-0-0", pair.text, (2 * i, 2 * i + 1), pair.true)
        for i, pair in enumerate(composed)
    ]
    version = hash_of(images.tobytes(), [(one.text, one.true) for one in claims])
    return Reasoning("emoji-reasoning", version, Arrays(images, "scene"), claims)
