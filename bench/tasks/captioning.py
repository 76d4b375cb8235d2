"""Captioning: what a model writes about a picture, against what people wrote.

    caption-karpathy:JSON:IMAGES     COCO or Flickr30k, test split      nocaps:JSON:IMAGES

Options: `?prompt=a picture of&tokens=plain&metrics=meteor,spice`, and of Karpathy-style files
`split=val`. Decoding is greedy: published scores of BLIP are of three beams and lie a bit higher.
The images of a NoCaps file without annotations, which a server keeps to itself, are captioned and
the captions not scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from bench.core.documents import parse_json, read_text
from bench.core.errors import BenchError, shown
from bench.models.loaded import Captioner, Multimodal, Writer
from bench.records.record import Metric
from bench.tasks import caption_score, files, karpathy
from bench.tasks.base import Evaluation, Feed, Task, hash_of, subset
from bench.tasks.pictures import Files, Pictures, answered, opened
from bench.tasks.registry import task
from bench.tasks.rows import document, unlike
from bench.tasks.scores import average

KARPATHY, NOCAPS = "caption-karpathy:JSON[:IMAGES]", "nocaps:JSON:IMAGES"
KNOWN = ("prompt", "tokens", "metrics")
# What each kind of model is told: BLIP's evaluation, and lmms-eval's for LLaVA.
PROMPTS = {
    Captioner.kind: "a picture of ",
    Multimodal.kind: "Provide a one-sentence caption for the provided image.",
}
LONGEST = 30  # tokens of a caption


class Captioning(Task):
    """Pictures and what people wrote about each."""

    kinds = (Captioner, Multimodal)

    def __init__(
        self,
        name: str,
        version: str,
        pictures: Pictures,
        texts: Sequence[Sequence[str]],
        ids: Sequence[Any],
        *,
        domains: Sequence[str] = (),
        prompt: str | None = None,
        tokens: str | None = None,
        metrics: Sequence[str] = (),
    ) -> None:
        """Name the task and its data.

        Args:
            name: of the task.
            version: of its data.
            pictures: to caption.
            texts: of each picture, its references.
            ids: of each picture, the number that result files know it by.
            domains: of each picture, a group whose CIDEr is told too.
            prompt: how a caption begins, or what is asked; None is what the model's kind expects.
            tokens: "ptb" (needs Java) or "plain"; None is "ptb" where Java is there.
            metrics: further ones, which need Java: "meteor", "spice".
        """
        super().__init__(name, version, texts)
        self.pictures, self.texts, self.ids, self.domains = pictures, texts, ids, domains
        self.prompt, self.tokens, self.more = prompt, caption_score.choose(tokens), metrics

    @cached_property
    def references(self) -> dict[int, list[str]]:
        """The references of every image, tokenised once."""
        owners = [i for i, texts in enumerate(self.texts) for _ in texts]
        flat = caption_score.tokenised([t for texts in self.texts for t in texts], self.tokens)
        references: dict[int, list[str]] = {i: [] for i in range(len(self))}
        for owner, text in zip(owners, flat, strict=True):
            references[owner].append(text)
        return references

    def by_sample(self, metric: str) -> bool:
        """CIDEr, whose words weigh as in the references of all images, and ROUGE-L."""
        return metric.startswith(("cider", "rouge_l"))

    def score(self, feed: Feed) -> Evaluation:
        """Score a model. Outcomes: `caption`, and each one's CIDEr where there are references."""
        public = any(self.texts)
        if public:
            caption_score.scorer("cider.cider")  # missing, it says so before any model has worked
        failed: list[str] = []
        captions = feed.answers(feed.index, partial(self._captions, feed.loaded, failed))
        if not public:
            return Evaluation({}, None, {"caption": captions}, failed)
        return self._scored(feed.index, captions, failed)

    def _captions(self, loaded: Writer, failed: list[str], some: Sequence[int]) -> list[str]:
        """The captions of some pictures, "" where one does not decode."""
        prompt = PROMPTS[loaded.kind] if self.prompt is None else self.prompt
        images = [opened(self.pictures, i, failed) for i in some]
        captions = answered(loaded, images, [prompt] * len(images), LONGEST)
        # A caption goes on from its prompt, which some processors give back and references lack.
        return [(text or "").strip().removeprefix(prompt.strip()).strip() for text in captions]

    def _scored(
        self, index: Sequence[int], captions: Sequence[str], failed: list[str]
    ) -> Evaluation:
        tokenised = dict(zip(index, caption_score.tokenised(captions, self.tokens), strict=True))
        scores = caption_score.score(tokenised, self.references, self.tokens)
        metrics: dict[str, Metric] = dict(scores.metrics)
        for name in self.more:
            metrics[name] = caption_score.with_java(name, tokenised, self.references, self.tokens)
        primary = next(iter(metrics))
        cider = dict(zip(index, scores.each[primary], strict=True))
        for domain in dict.fromkeys(self.domains):
            of = [one for i, one in cider.items() if self.domains[i] == domain]
            if of:
                name = f"{primary}_{domain.replace('-', '_')}"
                metrics[name] = average(of, caption_score.TIMES_100)
        return Evaluation(metrics, primary, {**scores.each, "caption": list(captions)}, failed)

    def submission(self, outcomes: Mapping[str, Sequence[Any]]) -> str:
        """Return COCO's result file: [{"image_id", "caption"}]."""
        captions = outcomes["caption"]
        asked = [self.ids[i] for i in subset(len(self), len(captions))]
        return files.answers_as_json("image_id", asked, "caption", captions)


def _chosen(options: Mapping[str, str], form: str) -> dict[str, Any]:
    """The options of a task's name as arguments of `Captioning`."""
    tokens = options.get("tokens")
    if tokens not in (None, caption_score.PTB, caption_score.PLAIN):
        raise BenchError(f"option tokens='{shown(tokens)}' in {form} must be ptb or plain")
    more = [name for name in options.get("metrics", "").split(",") if name]
    for name in more:
        if name not in caption_score.WITH_JAVA:
            raise BenchError(f"unknown metric '{shown(name)}' in {form}: meteor and spice are")
    tokens = caption_score.choose(tokens)  # part of the version: Java may come or go
    return {"prompt": options.get("prompt"), "tokens": tokens, "metrics": more}


def _require_references(texts: Sequence[Sequence[str]], pictures: Files, form: str) -> None:
    for i, references in enumerate(texts):
        if not references:
            name = shown(pictures.name(i))
            raise BenchError(f"{name} has no reference caption: {form} wants one each")


@task(KARPATHY, "captioning of COCO or Flickr30k; CIDEr, BLEU-4, ROUGE-L")
def coco(rest: str) -> Captioning:
    """Return a split of a Karpathy-style file (COCO, Flickr30k) for captioning."""
    where, options = files.options(rest, KARPATHY, (*KNOWN, "split"))
    data = karpathy.read(where, KARPATHY, options.get("split"))
    _require_references(data.texts, data.pictures, KARPATHY)
    chosen = _chosen(options, KARPATHY)
    name, version = f"caption-karpathy:{rest}", hash_of(data.version, chosen)
    return Captioning(name, version, data.pictures, data.texts, data.ids, **chosen)


@task(NOCAPS, "captioning of NoCaps; CIDEr by domain, BLEU-4, ROUGE-L")
def nocaps(rest: str) -> Captioning:
    """Return NoCaps from its annotations file and the folder of its images.

    The CIDEr of each domain is the mean over its images; words weigh as in the whole set.
    """
    (file, root), options = files.places(rest, NOCAPS, (2,), KNOWN)
    text = read_text(file)
    whole = document(parse_json(text, str(file)), file, "NoCaps file", NOCAPS)
    rows = [
        (row.identifier("id"), row.text("file_name"), row.text("domain", ""))
        for row in whole.rows("images", least=1)
    ]
    unlike((number for number, _, _ in rows), file, NOCAPS)
    captions: dict[Any, list[str]] = {number: [] for number, _, _ in rows}
    public = whole.value("annotations", None) is not None
    for row in whole.rows("annotations") if public else ():
        if row.identifier("image_id") not in captions:
            raise row.fault("image_id", "the id of one of its images")
        captions[row.identifier("image_id")].append(row.text("caption"))
    pictures = files.pictures([root / name for _, name, _ in rows], root, NOCAPS)
    texts = list(captions.values())
    if public:
        _require_references(texts, pictures, NOCAPS)
    chosen = _chosen(options, NOCAPS)
    version = hash_of(text, chosen)
    domains = [domain for _, _, domain in rows]
    chosen["domains"] = domains if all(domains) else []
    return Captioning(f"nocaps:{rest}", version, pictures, texts, list(captions), **chosen)
