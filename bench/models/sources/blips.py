"""The three small BLIPs, which lie in one folder with what they share stored once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COMMON = ("vision_model",)
CLASSES = {
    "vqa": "BlipForQuestionAnswering",
    "caption": "BlipForConditionalGeneration",
    "match": "BlipForImageTextRetrieval",
}


def unpacked(folder: Path, which: str, random_weights: bool) -> Any:
    """Return one of the models "vqa", "caption" and "match" of a folder, in float32."""
    import transformers

    from bench.models.tensors import check, read, shapes

    config = transformers.BlipConfig.from_json_file(folder / "config.json")
    model = getattr(transformers, CLASSES[which])(config)
    if random_weights:
        return model
    file = folder / "model.safetensors"
    state = {key.removeprefix(f"{which}."): value for key, value in read(file).items()}
    known = shapes(model.state_dict())
    check(f"weights file {file}", known, shapes(state), surplus=True)
    model.load_state_dict({key: state[key].float() for key in known})
    return model
