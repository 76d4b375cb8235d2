"""The bridge to lmms-eval (extra `lmms`): its tasks, answered by a model at work with a method.

    lmms-eval --model crossget_bench --tasks mme \
        --model_args pretrained=llava-hf/llava-1.5-7b-hf,method=tome,r=8

What is no argument of `Bridge` belongs to the method, written as YAML: `keep_rate=0.5`,
`r={language: 8}`. With `--use_cache`, answers are kept apart by method, parameters, the method's
source and the model's weights. A task of your own is a folder for `--include_path` with

    task: mine                          # mine.yaml; pictures.py has `of(doc)`, which returns images
    dataset_path: json
    dataset_kwargs: {data_files: {test: FOLDER/questions.jsonl}}
    test_split: test
    output_type: generate_until
    doc_to_visual: !function pictures.of
    doc_to_text: "{{question}}"
    doc_to_target: "{{answer}}"
    generation_kwargs: {max_new_tokens: 8}
    metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.assets import embedded
from bench.core.documents import yaml_value
from bench.core.errors import BenchError, Unsupported
from bench.core.registry import source_hash
from bench.engine.families.t5 import answer_begins, padding_side
from bench.engine.reduce import reduced
from bench.models import catalogue, huggingface, tensors
from bench.models.files import hash_files
from bench.models.films import WATCHES
from bench.models.sources import embedded as model_embedded
from bench.records.sources import family_hash, library_versions, measurement_hash
from bench.runs.lmms_media import picture, video_frames
from bench.tasks.video_questions import FRAMES

NAME = "crossget_bench"


def manifest() -> Any:
    """What lmms-eval finds through the entry-point group `lmms_eval.models`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=NAME, chat_class_path=f"{__name__}.CrossgetBench")


def __getattr__(name: str) -> Any:
    """Make `CrossgetBench` on demand: its base class comes with the optional package."""
    if name == "CrossgetBench":
        return _model_class()
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


@functools.cache
def _model_class() -> type[Bridge]:
    from lmms_eval.api.model import lmms

    return type("CrossgetBench", (Bridge, lmms), {"__module__": __name__, "is_simple": False})


class Bridge:
    """A multimodal language model of transformers that answers with a method at work in it."""

    task_dict: dict[str, Any]  # lmms-eval puts the tasks' data here

    def __init__(
        self,
        pretrained: str,
        method: str = "none",
        *,
        dtype: str = "auto",
        backend: str = "sdpa",
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        frames: int | str = FRAMES,
        **params: Any,
    ) -> None:
        """Load the model and its processor, and see that the method can work in it.

        Args:
            pretrained: a Hugging Face id, a folder of `save_pretrained`, or "embedded:llava-emoji".
            method: a registered method.
            dtype: "auto" (as saved), "float32", "bfloat16" or "float16".
            backend: attention backend, "sdpa" or "eager".
            device: by default "cuda" where there is one; of several processes each takes its own.
            batch_size: prompts answered at once.
            max_batch_size: not used; lmms-eval hands it over.
            frames: of a video that the model is shown, those of `bench.tasks.videos`.
            **params: `r`, `keep_rate`, `layers` and the method's own parameters.

        Raises:
            BenchError: unknown method or parameter, or a model that no adapter covers.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        catalogue.check_name(pretrained)
        family = catalogue.type_of(pretrained)
        if family and not huggingface.speaks(family):
            raise Unsupported(f"{pretrained} is no language model that sees, which {NAME} asks")
        super().__init__()
        self.arguments = {"pretrained": pretrained, "method": method, "dtype": dtype} | params
        self.arguments |= {"backend": backend, "frames": frames}
        self.method, self.params = method, _read(params)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        self.batch_size = _number("batch_size", batch_size)
        self.frames = _number("frames", frames)
        folder = model_embedded.FOLDERS.get(pretrained)
        where = embedded.path(folder) if folder else pretrained
        model = tensors.from_pretrained(
            AutoModelForImageTextToText, where, dtype=dtype, attn_implementation=backend
        )
        self.model: Any = model.eval().requires_grad_(False).to(self.device)
        self.processor: Any = AutoProcessor.from_pretrained(where, trust_remote_code=False)
        words = self.processor.tokenizer
        words.padding_side = padding_side(self.model)
        words.pad_token = words.pad_token or words.eos_token
        with self._reduced():  # what is wrong with the arguments shows before the data are loaded
            pass
        _sign_caches()

    def _reduced(self) -> Any:
        return reduced(self.model, self.method, **self.params)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the answer to each request."""
        with torch.inference_mode(), self._reduced():
            return [
                answer
                for options, same in itertools.groupby(requests, key=lambda one: one.args[2])
                for batch in _batches(list(same), self.batch_size)
                for answer in self._answer(batch, options)
            ]

    def _answer(self, requests: Sequence[Any], options: Mapping[str, Any]) -> Iterator[str]:
        texts, images, videos = zip(*map(self._prompt, requests), strict=True)
        words, films = self.processor.tokenizer, [film for shown in videos for film in shown]
        inputs = self.processor(
            text=list(texts),
            images=list(images) if any(images) else None,
            **({"videos": films, "do_sample_frames": False} if films else {}),
            padding=True,
            add_special_tokens=not (words.bos_token and texts[0].startswith(words.bos_token)),
            return_tensors="pt",
        ).to(self.device, self.model.dtype)
        tokens = self.model.generate(
            **inputs, **_sampling(options), pad_token_id=words.pad_token_id
        )
        new = tokens[:, answer_begins(self.model, inputs["input_ids"]) :]
        stops = options.get("until") or []
        for answer in self.processor.batch_decode(new, skip_special_tokens=True):
            for stop in [stops] if isinstance(stops, str) else stops:
                answer = answer.split(stop)[0] if stop else answer
            yield answer

    def _prompt(self, request: Any) -> tuple[str, list[Any], list[list[Any]]]:
        """Return a request's text, with image tokens in it, its images, its videos' frames."""
        _, messages_of, _, doc, task, split = request.args
        messages = messages_of(self.task_dict[task][split][doc])
        parts = [part for message in messages for part in message["content"]]
        known = {"text", "image", "video"} if self._watches else {"text", "image"}
        if kinds := {part["type"] for part in parts} - known:
            takes = "images and videos" if self._watches else "images"
            raise Unsupported(f"task '{task}' shows {' and '.join(sorted(kinds))}: {takes} only")
        videos = [video_frames(part, self.frames) for part in parts if part["type"] == "video"]
        images = [picture(part) for part in parts if part["type"] == "image"]
        if self.processor.chat_template:
            text = self.processor.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        else:  # a model that was never taught to chat
            text = "\n".join(part.get("text") or self._mark(part["type"]) for part in parts)
        return text, images, videos

    @property
    def _watches(self) -> bool:
        """Whether the model takes videos."""
        return self.model.config.model_type in WATCHES

    def _mark(self, kind: str) -> str:
        """Return the placeholder of an image or a video."""
        return str(getattr(self.processor, f"{kind}_token"))

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refuse: answers are generated here."""
        raise Unsupported(f"{NAME} runs tasks of the kind generate_until only")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuse: one question, one answer."""
        raise Unsupported(f"{NAME} runs tasks of the kind generate_until only")


def _number(name: str, value: int | str) -> int:
    """Return a number of an argument, which lmms-eval may hand over as text."""
    if not str(value).isdigit() or int(value) < 1:
        raise BenchError(f"{name}={value}: give a number")
    return int(value)


def _read(params: Mapping[str, Any]) -> dict[str, Any]:
    return {k: yaml_value(v, k) if isinstance(v, str) else v for k, v in params.items()}


def _batches(requests: list[Any], size: int) -> Iterator[list[Any]]:
    yield from (requests[i : i + size] for i in range(0, len(requests), size))


def _sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of `generate`: greedy unless the task asks for a temperature."""
    warm = (options.get("temperature") or 0) > 0
    return {
        "max_new_tokens": options.get("max_new_tokens", 1024),
        "num_beams": options.get("num_beams", 1),
        "do_sample": warm,
        "temperature": options["temperature"] if warm else None,
        "top_p": options.get("top_p") if warm else None,
        "top_k": options.get("top_k") if warm else None,
    }


def signature(pretrained: str, method: str = "none", **arguments: Any) -> dict[str, Any]:
    """Return what a cached answer depends on beside the arguments: sources, weights, files."""
    params = _read(arguments)
    files = [Path(value) for _, value in sorted(params.items()) if isinstance(value, str)]
    return {
        "measurement": measurement_hash(),
        "family": family_hash(catalogue.family_of(pretrained)),
        "libraries": library_versions(),
        "method_source_sha256": source_hash(method, params),
        "weights_sha256": catalogue.fingerprint(pretrained),
        "files_sha256": hash_files([file for file in files if file.is_file()]),
    }


def _sign_caches() -> None:
    """Put the signature into the keys of lmms-eval's response cache.

    The cache knows a model by its arguments, looks up before it asks the model, and has no hook
    for more; so the arguments it is given are completed. Other models' caches stay as they are.
    """
    from lmms_eval.caching.response_cache import ResponseCache

    plain = ResponseCache.create
    if getattr(plain, "signs", False):
        return

    def create(cache_root: str, *, model: Any = "", model_args: Any = "", **others: Any) -> Any:
        from lmms_eval.utils import simple_parse_args_string

        if isinstance(model, Bridge):
            model, model_args = NAME, model.arguments
        if model == NAME:
            if isinstance(model_args, str):
                model_args = simple_parse_args_string(model_args)
            model_args = {**model_args, "signature": signature(**model_args)}
        return plain(cache_root, model=model, model_args=model_args, **others)

    create.signs = True  # type: ignore[attr-defined]
    ResponseCache.create = staticmethod(create)
