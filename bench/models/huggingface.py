"""Models of transformers: from a folder, the hub or its cache, or by their shape alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.core.errors import BenchError
from bench.models import blip, joint, multimodal, vilt
from bench.models.files import check_file, hash_files, weight_files
from bench.models.joint import image_size
from bench.models.loaded import Classifier, Encoder, Loaded, Matcher, Reader, TwoTower
from bench.models.loading import fetching, hub_answers, quiet
from bench.models.processors import processor_of, saved, tokenizer_of, transform_of
from bench.models.shapes import shape
from bench.models.tensors import from_pretrained

if TYPE_CHECKING:
    from torch import nn

JOINT = {**blip.KINDS, **vilt.KINDS}  # by architecture, which the configuration names


def load(name: str, source: str, random_weights: bool, seed: int) -> Loaded:
    """Return a model by its folder or id.

    Args:
        name: as the user typed it.
        source: the folder, or the id without `hf:`.
        random_weights: build it from its configuration, or its built-in shape, alone.
        seed: of random weights.
    """
    import torch

    folder = Path(source).expanduser()
    local = folder.is_dir()
    where = str(folder) if local else source
    known = random_weights and shape(where) is not None
    on_disk = local or known or not hub_answers()
    with quiet(), fetching(name, "Hugging Face", random_weights):
        config = configuration(where, on_disk, random_weights and not local)
        auto = class_for(name, config)
        settings: dict[str, Any] = {
            "attn_implementation": joint.ATTENTION if config.model_type in joint.TYPES else "sdpa"
        }
        if not speaks(config.model_type):  # those stay as saved: they are large
            settings["dtype"] = torch.float32
        if random_weights:
            torch.manual_seed(seed)
            model = _build(auto, config, **settings)
        else:
            if local:
                for file in weight_files(folder):
                    check_file(file)
            model = from_pretrained(
                auto,
                where,
                config=config,
                **{"dtype": "auto", **settings},
                trust_remote_code=False,
                local_files_only=on_disk,
            )
    weights = "random" if random_weights else ("path" if local else f"hub:{source}")
    sha = hash_files(weight_files(folder)) if local and not random_weights else None
    provenance = {"weights": weights, "sha256": sha}
    return describe(name, model, provenance, None if random_weights else where, on_disk)


def speaks(model_type: str) -> bool:
    """Whether a type of transformers is a language model that sees, BLIP and ViLT excepted."""
    from transformers.models.auto import modeling_auto

    known = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return model_type in known and model_type not in joint.TYPES


def configuration(where: str, on_disk: bool, built_in: bool) -> Any:
    """Return the configuration: the built-in shape if there is one and it will do, else its own."""
    import transformers

    values = copy.deepcopy(shape(where)) if built_in else None
    if values is None:
        return transformers.AutoConfig.from_pretrained(
            where, trust_remote_code=False, local_files_only=on_disk
        )
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    if config.model_type == "clip":
        config.text_config.projection_dim = config.projection_dim
        config.vision_config.projection_dim = config.projection_dim
    return config


def class_for(name: str, config: Any) -> Any:
    """Return the class that makes a model, the automatic one where the task is no matter.

    Raises:
        BenchError: no adapter covers it; looked at on the meta device, without weights.
    """
    import torch
    import transformers

    from bench.engine.families import adapter_for

    if config.model_type in joint.TYPES:
        return _joint_class(name, config)
    if speaks(config.model_type):
        auto = transformers.AutoModelForImageTextToText
    elif any("ImageClassification" in a for a in config.architectures or []):
        auto = transformers.AutoModelForImageClassification
    else:
        auto = transformers.AutoModel
    with torch.device("meta"):
        model = _build(auto, copy.deepcopy(config))
    adapter_for(model).towers(model)
    return auto


def _joint_class(name: str, config: Any) -> Any:
    import transformers

    for architecture in config.architectures or []:
        if architecture in JOINT:
            return getattr(transformers, architecture)
    raise BenchError(
        f"{name} is a {config.model_type} with {config.architectures or 'no named architecture'}: "
        f"supported are {', '.join(JOINT)}; name one under 'architectures' in its config.json"
    )


def _build(auto: Any, config: Any, **settings: Any) -> nn.Module:
    build = getattr(auto, "from_config", None) or auto._from_config
    model: nn.Module = build(config, **settings)
    return model


def describe(
    name: str, model: Any, provenance: dict[str, Any], where: str | None, on_disk: bool = True
) -> Loaded:
    """Read from a model's configuration of which kind it is and how it is fed.

    Args:
        name: as the user typed it.
        model: of transformers.
        provenance: see `Loaded`.
        where: folder or id with what was saved to feed it; None: look for nothing.
        on_disk: look at no hub.
    """
    family = model.config.model_type
    with quiet():
        if speaks(family) or family in joint.TYPES:
            side = "right" if family in joint.TYPES else "left"  # joint texts are read from a start
            processor = None if where is None else processor_of(where, on_disk, side)
            told = _joint if family in joint.TYPES else multimodal.describe
            return told(name, model, provenance, processor)
        images = None if where is None else saved("AutoImageProcessor", where, on_disk)
        words = None if where is None else tokenizer_of(where, on_disk)
    fields = {**_common(name, model, provenance), "transform": transform_of(images)}
    text = getattr(model.config, "text_config", None)
    if text is not None:
        return TwoTower(
            **fields,
            tokenizer=words,
            text_length=int(text.max_position_embeddings),
            vocabulary=int(text.vocab_size),
            end_token=getattr(text, "eos_token_id", None),
        )
    if type(model).__name__.endswith("ForImageClassification"):
        return Classifier(**fields, classes=int(model.config.num_labels))
    return Encoder(**fields)


def _common(name: str, model: Any, provenance: dict[str, Any]) -> dict[str, Any]:
    vision = getattr(model.config, "vision_config", model.config)
    return {
        "name": name,
        "model": model,
        "image_size": image_size(vision),
        "channels": int(getattr(vision, "num_channels", 3)),
        "provenance": provenance,
    }


def _joint(name: str, model: Any, provenance: dict[str, Any], processor: Any) -> Loaded:
    architecture = type(model).__name__
    if architecture == "BlipForQuestionAnswering":  # its answers read padded questions
        from bench.engine.families.blip import heed_padding

        heed_padding(model.text_decoder.bert)
    kind, fields = JOINT[architecture], _common(name, model, provenance)
    if processor is not None and issubclass(kind, Matcher):
        fields["transform"] = transform_of(processor.image_processor)
        fields["tokenizer"] = blip.caption_tokenizer(model, processor)
    elif issubclass(kind, Reader):
        fields["processor"] = processor
    return kind(**fields)
