"""Tasks by name: what a model is scored on.

`fashion-mnist` and `emoji-retrieval` ship with the project; `imagefolder:PATH`,
`karpathy:JSON[:IMAGES]` and `hf-dataset:ID[@SPLIT]` read other data through the same two classes.
"""

from __future__ import annotations

from collections.abc import Callable

from bench.errors import BenchError
from bench.record import Metric
from bench.tasks.base import Evaluation, Progress, Task

__all__ = ["Evaluation", "Metric", "Progress", "Task", "catalogue", "check_name", "load", "names"]

EMBEDDED = {
    "fashion-mnist": "classification of 2,000 held-out Fashion-MNIST images, 10 classes (top 1, 5)",
    "emoji-vqa": "1,000 questions about scenes of emoji drawings of a held-out design house",
    "emoji-retrieval": "emoji drawings of a held-out design house against their names, both ways",
}
FORMS = {
    "imagefolder:PATH": "classification; one folder a class, in the order of the model's outputs",
    "karpathy:JSON[:IMAGES]": "retrieval; Karpathy-style split file with several captions an image",
    "hf-dataset:ID[@SPLIT]": "classification (image, label) or retrieval (image, caption)",
}


def names() -> list[str]:
    """Return the names of the tasks whose data ship with the project."""
    return list(EMBEDDED)


def catalogue() -> dict[str, str]:
    """Return every kind of name that `load` takes, with a line about each."""
    return {**EMBEDDED, **FORMS}


def check_name(name: str) -> None:
    """Raise BenchError when no task can be meant by `name`; reads no data."""
    scheme, colon, rest = name.partition(":")
    schemes = [form.partition(":")[0] for form in FORMS]
    if name in EMBEDDED or (scheme in schemes and rest):
        return
    from bench.registry import near_miss

    if scheme in schemes:
        form = next(form for form in FORMS if form.startswith(scheme))
        raise BenchError(f"task '{name}' names no data: write {form}")
    hint = near_miss(name, [*EMBEDDED, *FORMS]) if not colon else near_miss(scheme, schemes)
    raise BenchError(f"unknown task '{name}'{hint}")


def load(name: str) -> Task:
    """Return the task called `name`.

    Raises:
        BenchError: unknown name, or its data are missing or unusable; the message names the fix.
    """
    check_name(name)
    from bench.tasks import classification, retrieval, vqa

    scheme, _, rest = name.partition(":")
    makers: dict[str, Callable[[], Task]] = {
        "fashion-mnist": classification.fashion_mnist,
        "emoji-retrieval": retrieval.emoji,
        "emoji-vqa": vqa.emoji,
        "imagefolder": lambda: classification.image_folder(rest),
        "karpathy": lambda: retrieval.karpathy(rest),
        "hf-dataset": lambda: _hf_dataset(rest),
    }
    return makers[scheme]()


def _hf_dataset(name: str) -> Task:
    """Return the task that the columns of a data set allow."""
    from bench.tasks import hub

    return hub.load(name)
