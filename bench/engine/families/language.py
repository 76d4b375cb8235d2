"""The decoder of a multimodal language model as a tower, whose prompt is cut ahead of a block."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from functools import partial, update_wrapper
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.errors import Unsupported
from bench.core.site import LanguageSite
from bench.engine.families.decoder import LanguagePass
from bench.engine.families.hf import Family, HuggingFaceTower, noted
from bench.engine.families.prompt import Prompt
from bench.engine.masks import additive
from bench.engine.tower import original, override

_PRE_NORM = (("input_layernorm", "self_attn"), ("post_attention_layernorm", "mlp"))
_OPT = (("self_attn_layer_norm", "self_attn"), ("final_layer_norm", "fc1", "activation_fn", "fc2"))
_GEMMA3 = (
    ("input_layernorm", "self_attn", "post_attention_layernorm"),
    ("pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm"),
)
DECODERS = {
    "LlamaModel": Family("language", ("layers",), *_PRE_NORM, "norm"),
    "MistralModel": Family("language", ("layers",), *_PRE_NORM, "norm"),
    "Qwen2Model": Family("language", ("layers",), *_PRE_NORM, "norm"),
    "Qwen2VLTextModel": Family("language", ("layers",), *_PRE_NORM, "norm"),
    "Qwen2_5_VLTextModel": Family("language", ("layers",), *_PRE_NORM, "norm"),
    "Qwen3VLTextModel": Family("language", ("layers",), *_PRE_NORM, "norm"),
    "GemmaModel": Family("language", ("layers",), *_PRE_NORM, "norm"),
    "Gemma3TextModel": Family("language", ("layers",), *_GEMMA3, "norm"),
    "OPTDecoder": Family("language", ("layers",), *_OPT, "final_layer_norm"),
}


class LanguageTower(HuggingFaceTower):
    """The decoder of a multimodal language model; its prompt is cut ahead of the first block."""

    pass_class = LanguagePass
    causal = True
    prefix = 0
    n_protected = 0

    def __init__(self, part: Any, family: Family, model: Any, videos: bool = False) -> None:
        """Find its parts; RoPE with one axis can be renumbered. Its prompts may have `videos`."""
        super().__init__(part, family)
        if not getattr(self.blocks[0], "do_layer_norm_before", True):
            raise Unsupported("an OPT with the norm after attention (350m) is not supported")
        self.videos = getattr(model.config, "video_token_id", None) if videos else None
        self.model, self.final_norm = model, getattr(part, family.final_norm)
        self.rotates = hasattr(part, "rotary_emb")
        self.renumbers = self.rotates and "VL" not in type(part).__name__

    @property
    def has_anchor(self) -> bool:
        """The last token of the prompt."""
        return True

    def install_more(self, run: Any, stack: contextlib.ExitStack) -> None:
        """Note the prompt's ids where they are embedded; cut it ahead of the blocks."""
        embed = self.model.get_input_embeddings()
        stack.enter_context(override(embed, "forward", partial(noted, embed, run)))
        plain = original(self.part)
        # generate() goes by the arguments that an encoder is seen to take
        forward = update_wrapper(partial(run.forward, plain), plain)
        stack.enter_context(override(self.part, "forward", forward))
        owner = getattr(self.model, "model", None)
        if hasattr(owner, "get_video_features"):
            encode: Any = original(owner, "get_video_features")
            if self.videos is None:
                stack.enter_context(override(owner, "get_video_features", _no_videos))
            elif "video_grid_thw" in signature(encode).parameters:  # a packed encoder's
                shown = update_wrapper(partial(self._video, run, encode), encode)
                stack.enter_context(override(owner, "get_video_features", shown))

    def image_of(self, ids: Tensor) -> Tensor:
        """(B,N) which tokens of a prompt are the image's, or a video's."""
        image = (ids == image_token_id(self.model)) | self.video_of(ids)
        layout: Tensor = getattr(self.model, "_prompt_layout", image)
        return layout

    def video_of(self, ids: Tensor) -> Tensor:
        """(B,N) which tokens of a prompt are a video's."""
        return (
            torch.zeros_like(ids, dtype=torch.bool) if self.videos is None else ids == self.videos
        )

    def _video(
        self, run: Any, encode: Any, pixel_values_videos: Tensor, video_grid_thw: Tensor, **kw: Any
    ) -> Any:
        """The model's video features; the run learns how many frames and tokens each video has."""
        side = self.model.config.vision_config.spatial_merge_size
        run.videos = [(t, t * h * w // side**2) for t, h, w in video_grid_thw.tolist()]
        return encode(pixel_values_videos, video_grid_thw, **kw)

    def site(self, run: Any, layer: int, prompt: Prompt) -> LanguageSite:
        """What methods look at ahead of a block of a run."""
        x, bias = prompt.x, additive(run.mask, prompt.x.dtype)
        q, k, v = run.qkv or (x[:, None, :, :0],) * 3
        return LanguageSite(
            x,
            q,
            k,
            v,
            prompt.size,
            ~prompt.image,
            layer,
            run.depth,
            n_protected=x.shape[1] - run.counts[0],
            tower=self.name,
            scale=run.scale,
            bias=bias,
            anchor=torch.full((len(x),), x.shape[1] - 1, device=x.device),
            prefix=0,
            whole=not run.removals,
            causal=bias is None,
            start=run.start,
            norm=self.final_norm,
            draw=run.draw,
            frames=run.frames[0],
            **self.looks(run.module, x, lambda: run._arguments(run.arguments, x)),
        )

    @property
    def _fused(self) -> bool:
        return bool(self.part.config._attn_implementation != "eager")

    def causal_mask(self, x: Tensor, filled: Tensor | None) -> Tensor | None:
        """(B,1,M,M) mask of a prompt, padding not `filled`; None if the kernel has its own."""
        if filled is None and self._fused:
            return None
        M = x.shape[1]
        square = torch.ones(M, M, dtype=torch.bool, device=x.device)
        visible = square.tril()[None, None]
        if filled is not None:  # padding sees itself, lest its softmax be empty
            visible = (visible & filled[:, None, None]) | (square.tril() & square.triu())
        return self.mask(visible, x)

    def mask(self, visible: Tensor, x: Tensor) -> Tensor:
        """A boolean mask of what is visible, as the attention backend takes it."""
        if self._fused:
            return visible
        lowest = torch.finfo(x.dtype).min
        return torch.zeros_like(visible, dtype=x.dtype).masked_fill(~visible, lowest)

    def rotary(self, x: Tensor, position: Tensor, block: nn.Module) -> dict[str, Any]:
        """The arguments of a `block` that depend on positions (B,M)."""
        angles = self.part.rotary_emb(x, position_ids=position)
        return {"position_ids": position, "position_embeddings": angles}

    def looks(self, block: Any, x: Tensor, kw: Callable[[], Any]) -> dict[str, Any]:
        """What a site ahead of a block offers of it: `ahead`, `unrotated`, `turned`.

        Args:
            block: of the decoder.
            x: its input (B,M,C).
            kw: () -> the block's arguments, once somebody asks.
        """
        held: list[tuple[Tensor, Tensor]] = []  # no functools.cache, which cannot be traced

        def projected() -> tuple[Tensor, Tensor]:
            if not held:
                held.append(self.projected(block, x))
            return held[0]

        def turned(vectors: Tensor) -> Tensor:
            return self.turned(block, vectors, kw())

        def ahead() -> tuple[Tensor, Tensor]:
            q, k = projected()
            return (turned(q), turned(k)) if self.rotates else (q, k)

        offered = turned if self.rotates else None
        return {"ahead": ahead, "unrotated": projected, "turned": offered}

    def projected(self, block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B,H,M,D) queries and keys of a block from its input, before rotation."""
        norm, name, *_ = self.attn_parts
        attn, y = getattr(block, name), getattr(block, norm)(x)
        shape = (*x.shape[:2], -1, attn.head_dim)
        q, k = (getattr(attn, f"{n}_proj")(y).view(shape).transpose(1, 2) for n in "qk")
        if hasattr(attn, "q_norm"):
            q, k = attn.q_norm(q), attn.k_norm(k)
        return q, k

    def turned(self, block: Any, x: Tensor, kw: Any) -> Tensor:
        """(B,H,M,D) the rotary embedding of vectors by the block's arguments `kw`."""
        attn = getattr(block, self.attn_parts[1])
        rotate = sys.modules[type(attn).__module__].apply_rotary_pos_emb
        both = rotate(x, x[:, :0], *kw["position_embeddings"])  # it turns queries and keys
        return both[0]  # type: ignore[no-any-return]


def _no_videos(*_: Any, **__: Any) -> None:
    raise Unsupported("videos are not supported under reduction: give images")


def image_token_id(model: Any) -> int:
    """The token id that holds an image token's place in a prompt."""
    config = model.config
    for name in ("image_token_id", "image_token_index"):
        token = getattr(config, name, None)
        if token is not None:
            return int(token)
    raise Unsupported(f"{type(model).__name__} names no image token in its configuration")
