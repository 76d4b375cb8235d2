"""Videos of noise: how many tokens of a prompt they become, and the tensors that a model gets.

A frame is as large as an image in a prompt of noise. The prompt's layout is that of the models'
own processors: LLaVA-OneVision puts a new line behind the last frame, and Qwen3-VL a time and
two marks around each slice.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import torch
from torch import Tensor

from bench.core.errors import Unsupported
from bench.engine.families.image_towers import side_of

WATCHES = (
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
    *("llava_onevision", "llava_next_video", "video_llava"),
)
# Words around a slice of a Qwen3-VL's video: "<1.5 seconds>" in six tokens, its start and its end.
STAMP = 8


def video_token_id(model: Any) -> int:
    """Return the token id that holds a video token's place in a prompt."""
    return int(model.config.video_token_id)


def film(model: Any, frames: int, side: int) -> tuple[Tensor, dict[str, Any]]:
    """Return a video's layout and its tensors: a shape where values are noise.

    Args:
        model: takes videos.
        frames: of the video; Qwen's models put two into a slice.
        side: patches along a side of a frame, for models that take any.

    Returns:
        (N,) which tokens of the prompt's part about the video are the video's, and the arguments.

    Raises:
        Unsupported: the model takes no videos.
    """
    config, vision = model.config, model.config.vision_config
    if config.model_type not in WATCHES:
        raise Unsupported(f"{type(model).__name__} takes no videos: leave out the frames")
    if "qwen" in config.model_type:
        slices, tokens = ceil(frames / vision.temporal_patch_size), side**2
        patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        grid = torch.tensor([[slices, side, side]])
        parts = {"pixel_values_videos": (slices * tokens, patch), "video_grid_thw": grid}
        shown = torch.ones(slices, tokens // vision.spatial_merge_size**2, dtype=torch.bool)
        if config.model_type == "qwen3_vl":
            shown = torch.nn.functional.pad(shown, (STAMP - 1, 1), value=False)
        return shown.flatten(), parts
    pixels = side_of(vision.image_size)
    across = pixels // side_of(vision.patch_size)
    tokens = {
        "llava_onevision": frames * ceil(across / 2) ** 2 + 1,
        "llava_next_video": frames * (across // getattr(config, "spatial_pool_stride", 1)) ** 2,
        "video_llava": frames * (across**2 + 1),
    }[config.model_type]
    shape = (1, frames, getattr(vision, "num_channels", 3), pixels, pixels)
    return torch.ones(tokens, dtype=torch.bool), {"pixel_values_videos": shape}
