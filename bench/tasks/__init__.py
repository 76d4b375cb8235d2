"""Tasks by name: what a model is scored on.

`fashion-mnist` and the `emoji-` tasks ship with the project; the forms read other data, most in the
formats that the standard benchmarks are published in, through the same few classes.
"""

from __future__ import annotations

from importlib import import_module

from bench.core.errors import BenchError
from bench.records.record import Metric
from bench.tasks.base import Evaluation, Progress, Task

__all__ = ["Evaluation", "Metric", "Progress", "Task", "catalogue", "check_name", "load", "names"]

EMBEDDED = {
    "fashion-mnist": "classification of 2,000 held-out Fashion-MNIST images, 10 classes (top 1, 5)",
    "emoji-vqa": "1,000 questions about scenes of small emoji drawings, new arrangements",
    "emoji-captions": "1,000 such scenes, and what is where in them (CIDEr, BLEU-4, ROUGE-L)",
    "emoji-reasoning": "1,000 statements about two such scenes each, half of them true",
    "emoji-rerank": "500 such scenes against their captions, the 64 nearest re-ranked",
    "emoji-retrieval": "emoji drawings of a held-out design house against their names, both ways",
    "emoji-zeroshot": "emoji drawings of a held-out design house among 1,636 labels (top 1, 5)",
}
FORMS = {
    "imagefolder:PATH": "classification; one folder a class, in the order of the model's outputs",
    "karpathy:JSON[:IMAGES]": "retrieval; Karpathy-style split file with several captions an image",
    "hf-dataset:ID[@SPLIT]": "classification (image, label) or retrieval (image, caption)",
    "vqav2:QUESTIONS:ANNOTATIONS:IMAGES": "VQAv2's files; the official soft accuracy",
    "pope:JSON:IMAGES": "POPE: is an object there; accuracy, precision, recall, F1, share of yes",
    "caption-karpathy:JSON[:IMAGES]": "captioning of COCO or Flickr30k; CIDEr, BLEU-4, ROUGE-L",
    "nocaps:JSON:IMAGES": "captioning of NoCaps; CIDEr by domain, BLEU-4, ROUGE-L",
    "nlvr2:JSON:IMAGES": "NLVR2: is a statement about two images true; accuracy, consistency",
    "rerank-karpathy:JSON[:IMAGES]": "retrieval; the k nearest re-ranked by image-text matching",
    "zeroshot:FOLDER": "zero-shot classification of CoOp's data sets or of one folder a class",
}
# Where each scheme is read: what follows the colon goes to the function.
READERS = {
    "imagefolder": "classification.image_folder",
    "karpathy": "retrieval.karpathy",
    "hf-dataset": "hub.load",
    "vqav2": "vqa_formats.vqav2",
    "pope": "vqa_formats.pope",
    "caption-karpathy": "captioning.coco",
    "nocaps": "captioning.nocaps",
    "nlvr2": "reasoning.nlvr2",
    "rerank-karpathy": "reranking.coco",
    "zeroshot": "zeroshot_files.folder",
}
SHIPPED = {
    "fashion-mnist": "classification.fashion_mnist",
    "emoji-vqa": "vqa.emoji",
    "emoji-captions": "emoji.captioning",
    "emoji-reasoning": "emoji.reasoning",
    "emoji-rerank": "emoji.reranking",
    "emoji-retrieval": "retrieval.emoji",
    "emoji-zeroshot": "zeroshot.emoji",
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
    from bench.core.errors import near_miss

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
    scheme, _, rest = name.partition(":")
    module, _, function = (SHIPPED | READERS)[scheme].partition(".")
    make = getattr(import_module(f"bench.tasks.{module}"), function)
    task: Task = make(rest) if scheme in READERS else make()
    return task
