"""How captions are scored: CIDEr-D, BLEU-4 and ROUGE-L, through the official scorers.

Source: pycocoevalcap (extra `caption`), the COCO captioning server's programs.

Tokens decide these numbers. The official ones come from the Penn Treebank tokenizer, which needs
Java; `plain` tokens come from a few lines of Python that follow it closely. Scores of plain tokens
have names of their own (`cider_plain`), so that the two never share a column.

CIDEr weighs words by how rare they are among the references of all images of the split, those that
a limit leaves out too: a score depends on the whole reference set, and compares within it alone.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from bench.core.errors import BenchError
from bench.records.record import Metric
from bench.tasks.scores import average

Texts = Mapping[int, list[str]]  # image -> its texts, tokens between spaces

PTB, PLAIN = "ptb", "plain"
WITH_JAVA = ("meteor", "spice")
JAR, PTB_MAIN = "stanford-corenlp-3.4.1.jar", "edu.stanford.nlp.process.PTBTokenizer"
TIMES_100 = "×100"  # as papers print it; CIDEr has no upper end that would make it a percentage
_ENDINGS = r"'(?:s|re|ve|ll|d|m)\b"
_PLAIN = re.compile(
    rf"n't\b|{_ENDINGS}|-[lr]rb-|(?:[a-z]\.){{2,}}|(?:dr|ft|mr|mrs|mt|st)\.(?=\s|$)|"
    r"\w+(?:[-.,:/&']\w+)*|[&#$%/*+=@]"
)


@dataclass(frozen=True)
class Scores:
    """Metrics of a set of captions, and those that each caption has by itself."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    each: dict[str, list[float]] = field(default_factory=dict)


def has_java() -> bool:
    """Whether a Java program can be run."""
    return shutil.which("java") is not None


def choose(tokens: str | None) -> str:
    """Return which tokens to score: those asked for, or the official ones where Java is there."""
    if tokens == PTB and not has_java():
        raise BenchError("tokens=ptb needs Java: install a Java runtime, or say tokens=plain")
    return tokens or (PTB if has_java() else PLAIN)


def tokenised(texts: Sequence[str], tokens: str) -> list[str]:
    """Return texts with their tokens between spaces, lower case, without punctuation."""
    lines = [" ".join(text.split()) for text in texts]
    return _ptb(lines) if tokens == PTB else [plain_tokens(line) for line in lines]


def plain_tokens(text: str) -> str:
    """Return the Penn Treebank's tokens of a caption, nearly, in a few lines of Python."""
    text = re.sub(r"\bcannot\b", "can not", text.lower())
    text = re.sub(rf"(?<=\w)(n't\b|{_ENDINGS})", r" \1", text)
    text = text.replace("(", " -lrb- ").replace(")", " -rrb- ")  # as the official list leaves them
    return " ".join(_PLAIN.findall(text))


def _ptb(lines: Sequence[str]) -> list[str]:
    module = scorer("tokenizer.ptbtokenizer")
    jar = Path(str(module.__file__)).with_name(JAR)
    command = ["java", "-cp", str(jar), PTB_MAIN, "-preserveLines", "-lowerCase"]
    done = subprocess.run(
        [*command, "-encoding", "UTF-8"],
        input="\n".join(lines) + "\n",
        capture_output=True,
        encoding="utf-8",
    )
    tokenised_lines = done.stdout.split("\n")[: len(lines)]
    if done.returncode or len(tokenised_lines) != len(lines):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise BenchError(f"Java's tokenizer failed ({last}): mend Java, or say tokens=plain")
    punctuation = set(module.PUNCTUATIONS)
    # Single spaces part tokens: some hold others ("1 1/2" has an unbreakable one).
    words = (line.rstrip().split(" ") for line in tokenised_lines)
    return [" ".join(word for word in line if word not in punctuation) for line in words]


def scorer(name: str) -> Any:
    """Return a module of pycocoevalcap."""
    try:
        return import_module(f"pycocoevalcap.{name}")
    except ImportError as error:
        raise BenchError(
            f"captions are scored with pycocoevalcap ({error}): pip install pycocoevalcap"
        ) from error


def score(captions: Mapping[int, str], references: Texts, tokens: str) -> Scores:
    """Score captions.

    Args:
        captions: image -> the caption to score, tokenised. Not every image needs one.
        references: image -> its references, tokenised, of every image of the split.
        tokens: how they were tokenised; it becomes part of the metrics' names.
    """
    suffix = "" if tokens == PTB else f"_{tokens}"
    # Images without a caption to score stay in for the weights of words, without a caption.
    everything = {image: [captions.get(image, "")] for image in references}
    asked = {image: [text] for image, text in captions.items()}
    references_of_asked = {image: references[image] for image in captions}
    _, cider = scorer("cider.cider").Cider().compute_score(references, everything)
    by_image = dict(zip(references, 100 * np.asarray(cider), strict=True))
    bleu, _ = scorer("bleu.bleu").Bleu(4).compute_score(references_of_asked, asked, verbose=0)
    _, rouge = scorer("rouge.rouge").Rouge().compute_score(references_of_asked, asked)
    each = {
        f"cider{suffix}": [float(by_image[image]) for image in captions],
        f"rouge_l{suffix}": [float(one) for one in rouge],
    }
    metrics = {
        f"cider{suffix}": average(each[f"cider{suffix}"], TIMES_100),
        # Over the whole set at once: no caption has a BLEU whose mean this would be.
        f"bleu4{suffix}": Metric(100 * float(bleu[3]), "%", None, len(captions)),
        f"rouge_l{suffix}": average(each[f"rouge_l{suffix}"], "%", 100),
    }
    return Scores(metrics, each)


def with_java(name: str, captions: Mapping[int, str], references: Texts, tokens: str) -> Metric:
    """Return METEOR or SPICE, whose programs need Java (and SPICE a download of its own)."""
    if tokens != PTB:
        raise BenchError(f"{name} needs Java, and the tokens of the Penn Treebank: install Java")
    asked = {image: [text] for image, text in captions.items()}
    references_of_asked = {image: references[image] for image in captions}
    try:
        value, _ = getattr(scorer(f"{name}.{name}"), name.title())().compute_score(
            references_of_asked, asked
        )
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise BenchError(f"{name} failed ({error}): leave it out of metrics=") from error
    return Metric(100 * float(value), "%", None, len(captions))
