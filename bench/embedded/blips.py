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
    from safetensors.torch import load_file

    config = transformers.BlipConfig.from_json_file(folder / "config.json")
    model = getattr(transformers, CLASSES[which])(config)
    if random_weights:
        return model
    known, state = model.state_dict(), load_file(folder / "model.safetensors")
    own = {key.removeprefix(f"{which}."): value for key, value in state.items()}
    model.load_state_dict({key: own[key].float() for key in known})
    return model
