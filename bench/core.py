"""The types everything else speaks: `Site`, `Plan`, `Reducer`, `Schedule`, `Observer`.

Deciding is not applying. A method (`Reducer`) looks at a `Site` and answers with a `Plan`; the
harness (`bench.reduce`) moves the tokens, their sizes and the bookkeeping.

Shape suffixes: B batch, N tokens in, M tokens kept, R tokens merged away, E tokens appended,
C channels, H heads, D channels a head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

# methods say with these where they cannot run
from bench.errors import BenchError as BenchError
from bench.errors import Unsupported as Unsupported


def take(x_BNC: Tensor, index_BM: Tensor) -> Tensor:
    """Rows of each sample: (B,N,C) and (B,M) -> (B,M,C).

    One `index_select` over the flattened batch copies whole rows, which on a CPU is several times
    faster than `gather` with an index expanded to every channel.
    """
    B, N, C = x_BNC.shape
    flat = _flatten(index_BM, N)
    return x_BNC.reshape(B * N, C).index_select(0, flat).view(B, index_BM.shape[1], C)


def add_rows(out_BMC: Tensor, index_BR: Tensor, rows_BRC: Tensor) -> Tensor:
    """Add rows (B,R,C) at indices (B,R) into `out` (B,M,C), in place; targets may repeat."""
    B, M, C = out_BMC.shape
    out_BMC.view(B * M, C).index_add_(0, _flatten(index_BR, M), rows_BRC.reshape(-1, C))
    return out_BMC


def _flatten(index: Tensor, n: int) -> Tensor:
    return (index + torch.arange(index.shape[0], device=index.device)[:, None] * n).flatten()


def default_layers(depth: int) -> tuple[int, ...]:
    """Blocks 3, 6, 9 (0-based) of 12, and in proportion elsewhere."""
    return tuple(sorted({depth * i // 4 for i in (1, 2, 3)}))


@dataclass(frozen=True)
class Site:
    """What a method may look at: one block of one tower, after attention, before the MLP.

    Methods with `before` look at a block's input instead; q, k and v are then the block before's
    (without channels ahead of the first block).

    Attributes:
        x: (B,N,C) residual stream, the attention's output already added.
        q: (B,H,N,D) queries of this block's attention (k and v alike).
        size: (B,N,1) how many input tokens each token stands for; 0 marks an empty slot.
        protect: (B,N) bool, tokens that must survive and must not receive others.
        n_protected: how many tokens a sample protects (the same for all samples).
        layer: 0-based block index; `depth` the number of blocks.
        tower: "vision" or "text".
        scale: factor on the attention logits.
        bias: what was added to the logits, broadcastable to (B,H,N,N), or None.
        anchor: (B,) position of the token that is read out (class, end of text), or None.
        prefix: leading tokens that are not patches (class, distillation, registers).
        grid: (rows, columns) of the patches while they still form one, else None.
        guide: (B,G,C) tokens of the other modality, where the model has them.
        whole: no token of this sequence was dropped or merged so far.
        causal: the block attends under a causal mask that `bias` does not hold.
        start: the site at the input of a language model (x: embeddings; q, k, v without channels),
            for methods that compare the image's tokens with the words before any block ran.
        ahead: () -> (q, k) of this block, for methods with `before`, which else see the block
            before's; it costs the two projections once more.
        norm: the tower's final norm.
        draw: number of the batch in an accuracy pass, 0 elsewhere: random methods draw by it.

    In a language model ("language") the unprotected tokens are the image's; the others are words,
    or padding (size 0). Between an image tower and a language model ("projector") q, k and v are
    those of the block that made the features, and x has its class token in front, protected; where
    the projector joins patches (Qwen2-VL), a token is a group of them, side by side.
    """

    x: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    size: Tensor
    protect: Tensor
    layer: int
    depth: int
    n_protected: int = 1
    tower: str = "vision"
    scale: float | None = None
    bias: Tensor | None = None
    anchor: Tensor | None = None
    prefix: int = 1
    grid: tuple[int, int] | None = None
    guide: Tensor | None = None
    whole: bool = True
    causal: bool = False
    start: Site | None = None
    ahead: Callable[[], tuple[Tensor, Tensor]] | None = None
    norm: Callable[[Tensor], Tensor] | None = None
    draw: int = 0

    def attention(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """Attention probabilities of some query rows, computed on demand.

        Args:
            rows: a slice of the N queries, or (B,) one query a sample.

        Returns:
            (B,H,rows,N), softmax over all N keys, with the bias that the block itself used.
        """
        scale = self.q.shape[-1] ** -0.5 if self.scale is None else self.scale
        if isinstance(rows, slice):
            q = self.q[:, :, rows]
        else:
            q = self.q[torch.arange(len(rows), device=rows.device), :, rows][:, :, None]
        k = self.k
        if k.shape[1] != q.shape[1]:  # grouped queries
            k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        logits = (q * scale) @ k.transpose(-2, -1)
        for bias in self._biases(rows):
            logits = logits + bias
        return logits.softmax(-1)

    def _biases(self, rows: slice | Tensor) -> Iterator[Tensor]:
        """What is added to the logits of these rows: the bias, and the causal mask."""
        bias = self.bias
        if bias is not None and bias.shape[-2] > 1 and isinstance(rows, slice):
            bias = bias[:, :, rows]
        elif bias is not None and bias.shape[-2] > 1:
            at = torch.arange(len(rows), device=bias.device)  # type: ignore[arg-type]
            bias = bias.expand(len(at), -1, -1, -1)[at, :, rows][:, :, None]
        if bias is not None:
            yield bias
        if self.causal:
            position = torch.arange(self.k.shape[2], device=self.k.device)
            row = position[rows][:, None] if isinstance(rows, slice) else rows[:, None, None, None]
            later = position > row
            yield torch.zeros_like(later, dtype=self.q.dtype).masked_fill(later, -torch.inf)

    def anchor_attention(self) -> Tensor:
        """(B,N) attention that the anchor (class or end-of-text token) pays, mean over heads.

        Raises:
            ValueError: the tower has no such token (methods that need one set `needs_anchor`).
        """
        if self.anchor is None:
            raise ValueError("this tower has no class or end-of-text token")
        return self.attention(self.anchor).mean(1)[:, 0]

    def split(self) -> tuple[Tensor, Tensor]:
        """(B,P) positions of the protected tokens, (B,N-P) of the others, each in their order."""
        order = (~self.protect).to(torch.int8).argsort(dim=1, stable=True)
        return order[:, : self.n_protected], order[:, self.n_protected :]

    def keys(self) -> Tensor:
        """(B,N,H*D) keys over the whole width, heads side by side (a view where layout permits)."""
        return self.k.transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Plan:
    """What a method answers: which tokens stay, which merge into which, with what weight.

    With sizes s and gains (g_src, g_dst), by default 1, an output token is
    `(s_d (1 + sum(g_dst - 1)) x_d + sum s_i g_src_i x_i) / (s_d + sum s_i)`,
    and with `mix` (w_keep, w_src) it is `w_keep_d x_d + sum w_src_i x_i`.

    Attributes:
        keep: (B,M) indices into N, in output order; -1 leaves a slot empty (size 0, never seen).
        src: (B,R) indices into N, merged away; None for a pruner.
        dst: (B,R) indices into M, where each source goes.
        gain: (B,R) weights on the source and on its destination, once a source.
        mix: (B,M) and (B,R) weights of kept and merged tokens, in place of the weighted mean.
        extra: (B,E,N) weights of tokens made of input tokens, appended after the kept ones.
        soft: `extra` makes one token part of several; else each is part of at most one.
        members: how many tokens `extra` is made of, where it is not soft; None for all that are
            neither kept nor merged.
        size: (B,M+E,1) sizes afterwards, where they are not the sums over what was merged.
        grid: (rows, columns) when the kept patches form a grid again.
    """

    keep: Tensor
    src: Tensor | None = None
    dst: Tensor | None = None
    gain: tuple[Tensor, Tensor] | None = None
    mix: tuple[Tensor, Tensor | None] | None = None
    extra: Tensor | None = None
    size: Tensor | None = None
    grid: tuple[int, int] | None = None
    padded: bool = False  # whether `keep` has empty slots
    soft: bool = False
    members: int | None = None

    def apply(self, x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B,N,C) and sizes (B,N,1) -> (B,M+E,C) and (B,M+E,1).

        Observers are told the price of the merge, which does not depend on how it is written.
        """
        for observer in OBSERVERS:
            observer.enter("merge")
        merged = self._applied(x, size)
        for observer in OBSERVERS:
            observer.exit("merge")
            observer.merged(self.macs(x))
        return merged

    def macs(self, x: Tensor) -> int:
        """The price of the merge by convention, for tokens (B,N,C), in multiply-accumulates.

        One a channel for each token that disappears into another; a soft assignment is the matrix
        product of its weights and the tokens. It follows from shapes, so that no value is needed.
        """
        B, N, C = x.shape
        gone = 0 if self.src is None else self.src.shape[1]
        if self.extra is not None:
            made = self.extra.shape[1]
            if self.soft:
                return B * (gone + made * N) * C
            free = N - self.keep.shape[1] - gone
            gone += max((free if self.members is None else self.members) - made, 0)
        return B * gone * C

    def _applied(self, x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        keep = self.keep.clamp(min=0) if self.padded else self.keep
        out, new = take(x, keep), take(size, keep)
        if self.padded:
            filled = (self.keep >= 0)[..., None]
            out, new = out * filled.to(x.dtype), new * filled.to(size.dtype)
        if self.mix is not None:
            out = out * self.mix[0][..., None].to(x.dtype)
        if self.src is not None and self.dst is not None:
            out, new = self._merge(x, size, out, new)
        if self.extra is not None:
            out = torch.cat([out, self.extra.to(x.dtype) @ x], 1)
            stands_for = (self.extra != 0).to(size.dtype) @ size
            new = torch.cat([new, stands_for], 1)
        return out, new if self.size is None else self.size.to(size.dtype)

    def _merge(self, x: Tensor, size: Tensor, out: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        src, dst = self.src, self.dst
        assert src is not None and dst is not None
        moved = take(size, src)
        new = add_rows(kept.clone(), dst, moved)
        if self.mix is not None:
            assert self.mix[1] is not None
            return add_rows(out, dst, take(x, src) * self.mix[1][..., None].to(x.dtype)), new
        weight_src, weight_dst = moved, kept
        if self.gain is not None:
            g_src, g_dst = (g[..., None].to(size.dtype) for g in self.gain)
            weight_src = moved * g_src
            weight_dst = kept * add_rows(torch.ones_like(kept), dst, g_dst - 1)
        dtype = x.dtype
        out = out * weight_dst.to(dtype)
        out = add_rows(out, dst, take(x, src) * weight_src.to(dtype))
        # padding has size 0; a token made of padding alone stays zero instead of 0/0
        return out / new.clamp_min(torch.finfo(new.dtype).tiny).to(dtype), new

    def slots(self, n: int) -> Tensor:
        """(B,N) output slot of each input token; -1 where it was dropped.

        An appended token is the slot of the dropped tokens it is made of.
        """
        B, M = self.keep.shape
        slot = self.keep.new_full((B, n), -1)
        if self.extra is not None:
            member = (self.extra != 0).any(1)
            slot = torch.where(member, M + self.extra.abs().argmax(1), slot)
        number = torch.arange(M, device=slot.device).expand(B, M)
        if self.padded:  # an empty slot is nobody's: it writes into a column that is cut off
            slot = torch.cat([slot, slot[:, :1]], 1)
            slot = slot.scatter(1, torch.where(self.keep < 0, n, self.keep), number)[:, :n]
        else:
            slot = slot.scatter(1, self.keep, number)
        if self.src is not None and self.dst is not None:
            slot = slot.scatter(1, self.src, self.dst)
        return slot

    def reorder(self, key_BM: Tensor) -> Plan:
        """The same plan with the kept tokens in ascending, stable order of `key`."""
        order = key_BM.argsort(dim=1, stable=True)
        dst, mix, size = self.dst, self.mix, self.size
        if dst is not None:
            dst = order.argsort(1).gather(1, dst)
        if mix is not None:
            mix = (mix[0].gather(1, order), mix[1])
        if size is not None:
            M = order.shape[1]
            size = torch.cat([size[:, :M].gather(1, order[..., None]), size[:, M:]], 1)
        return replace(self, keep=self.keep.gather(1, order), dst=dst, mix=mix, size=size)


class Schedule(Protocol):
    """How many tokens to remove at a layer."""

    def __call__(self, layer: int, depth: int, tokens: int, initial: int) -> int:
        """Removable tokens to take away at `layer`, of `tokens` now and `initial` at the start."""
        ...


class Reducer:
    """A token-reduction method: a frozen dataclass whose fields are its parameters.

    The class attributes say what it is; `@register` fills `name`, `summary`, `source` and `url`.

    Attributes:
        proportional: attention gets `log size` added to its logits after the first merge.
        needs_anchor: ranks tokens by the class / end-of-text token, so the tower must have one.
        max_share: largest share of the unprotected tokens that one layer can remove.
        least: how many of them always stay (at least one cluster, say).
        budget: what it takes when the user names none, e.g. `{"r": 8}`.
        keeps: what a keep rate is a share of: the "current" tokens (ceil, as EViT), or the
            "initial" ones, compounding over the layers (floor, as TopK).
        appends: tokens that the method adds at the end of the sequence and that never merge.
        before: it acts on a block's input, ahead of its attention.
        adaptive: how many tokens it keeps depends on the sample: `r` is then what the schedule
            would have gone by now less what has, so that `tokens - r` is the schedule's count.
        towers: where it can act, first where it acts when the user names no tower: "vision",
            "text", "projector" (between an image tower and a language model), "language".
        visits: towers whose first token of a prompt it refreshes, removing none (if `appends`).
        reads: in the projector: whose q, k, v it sees, counted from the block that makes the
            features (1: the block after).
        keeps_class: in the projector: the class token goes to the language model too.
        renumbers: in a language model: positions count on without gaps after a removal.
        learns: the parameter that takes what training learned: tensors by name, or a safetensors
            file with them under `LEARNS.NAME`.
        seeds: accuracy is the mean over so many values of its parameter `seed`: more than one where
            chance decides which tokens go.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    url: ClassVar[str] = ""
    acts: ClassVar[str] = "every layer, after attention"
    trained: ClassVar[bool] = False
    proportional: ClassVar[bool] = False
    needs_anchor: ClassVar[bool] = False
    max_share: ClassVar[float] = 0.5
    least: ClassVar[int] = 0
    budget: ClassVar[dict[str, Any]] = {"r": 8}
    keeps: ClassVar[str] = "current"
    appends: ClassVar[int] = 0
    before: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    learns: ClassVar[str] = ""
    towers: ClassVar[tuple[str, ...]] = ("vision", "text")
    visits: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[int] = 0
    keeps_class: ClassVar[bool] = False
    renumbers: ClassVar[bool] = False
    seeds: ClassVar[int] = 1

    @property
    def learned(self) -> Mapping[str, Tensor]:
        """The tensors that it brings with it, by name."""
        return {}

    @property
    def parts(self) -> Sequence[tuple[str, Mapping[str, Any]]] | None:
        """Methods, each with its arguments for `reduced()`, that are run in place of this one."""
        return None

    def plan(self, site: Site, r: int) -> Plan:
        """Decide which `r` >= 1 unprotected tokens of `site` go, and where."""
        raise NotImplementedError

    def feasible(self, r: int, tokens: int, grid: tuple[int, int] | None) -> int:
        """The removal nearest to `r` that this method can make of `tokens` removable ones."""
        return max(min(r, int(tokens * self.max_share), tokens - self.least), 0)

    def append(self, x: Tensor, anchor: Tensor | None, tower: str) -> Tensor:
        """(B,N,C) -> (B,appends,C): tokens to add before the first block (if `appends`)."""
        raise NotImplementedError

    def refresh(self, x: Tensor, anchor: Tensor | None, layer: int, tower: str) -> Tensor:
        """(B,N,C) -> (B,N,C): the sequence as this layer shall see it (if `appends`)."""
        return x

    def resize(
        self, keep_rate: float, height: int, width: int, patch: tuple[int, int]
    ) -> tuple[int, int]:
        """The image size to run at, in pixels, for methods that act on the input."""
        return height, width

    def learn(self, shapes: Mapping[str, tuple[int, int]]) -> Mapping[str, nn.Parameter]:
        """Get ready to be trained in towers of these (depth, width); return what is to be learned.

        The parameters go on being used by this instance, so that gradients reach them.
        """
        return {}

    def loss(self, model: Any, own: Tensor | None = None) -> Tensor | None:
        """The method's own loss after a forward pass of `model` in training; None without one.

        `own` (B,) is the row of each image's text, where texts and images are not paired by row.
        """
        return None


class Learner(Reducer):
    """A method that brings tensors, which training learns.

    The parameter that `learns` names gives them (or nothing: None, or "random" stand-ins made up on
    the way); they are kept in `tables`.
    """

    tables: dict[str, Tensor]

    def __post_init__(self) -> None:
        """Read the tensors."""
        object.__setattr__(self, "tables", self.read(getattr(self, self.learns)))

    def read(self, given: Mapping[str, Tensor] | str | Path | None) -> dict[str, Tensor]:
        """Tensors by name, themselves or a safetensors file's under `LEARNS.NAME`.

        Raises:
            BenchError: no such file, or it holds nothing under that name.
        """
        if given is None or (given == "random" and self.trained):
            return {}
        if not isinstance(given, str | Path):
            return dict(given)
        from safetensors import safe_open

        if not Path(given).is_file():
            raise BenchError(f"no file {given}: {self.learns} must name a safetensors file")
        prefix = self.learns + "."
        with safe_open(str(given), "pt") as file:  # which may hold a model's weights as well
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            found = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
        if not found:
            raise BenchError(f"{given} holds no tensor named {prefix}NAME")
        return found

    @property
    def learned(self) -> Mapping[str, Tensor]:
        """The tables."""
        return self.tables

    def at(self, site: Site) -> dict[str, Tensor]:
        """This tower's and layer's tables by NAME, from those named `TOWER.LAYER.NAME`.

        One that is named `TOWER.LAYER` has the name "".

        Raises:
            Unsupported: there is none.
        """
        key = f"{site.tower}.{site.layer}"
        tables = self.tables.items()
        found = {k[len(key) + 1 :]: v for k, v in tables if f"{k}.".startswith(f"{key}.")}
        if not found:
            layers = sorted({".".join(name.split(".")[:2]) for name in self.tables})
            has = f"only for {', '.join(layers)}" if layers else "for no layer"
            random = f", or give {self.learns}='random' to count costs" if self.trained else ""
            raise Unsupported(
                f"{self.name} has {self.learns} {has}, not for {key}: train some with --freeze or "
                f"choose its layers={random}"
            )
        return found

    def untrained(self, shapes: Mapping[str, tuple[int, int]]) -> Mapping[str, Tensor]:
        """What to begin with in towers of these (depth, width), where nothing is given."""
        raise NotImplementedError

    def learn(self, shapes: Mapping[str, tuple[int, int]]) -> Mapping[str, nn.Parameter]:
        """Make parameters of the tables, given or untrained."""
        tables = {**self.untrained(shapes), **self.tables}
        learned = {name: nn.Parameter(table.clone()) for name, table in tables.items()}
        self.tables.update(learned)
        return learned


class Observer:
    """Something that watches a reduced forward pass: a counter, a timer, a trace.

    It overrides what it wants to know. One with a method `slots` is also told which token went
    where, which is worked out for it alone.
    """

    def enter(self, region: str) -> None:
        """A region begins: "reduction", or within it "merge", where a plan is applied."""

    def exit(self, region: str) -> None:
        """The region ends."""

    def merged(self, macs: int) -> None:
        """A plan was applied; its merge costs so many multiply-accumulates by convention."""

    def block(self, tower: str, layer: int, n_in: int, n_out: int) -> None:
        """A block ran: its attention on `n_in` tokens, its MLP on `n_out`."""

    def kept(self, size: Tensor) -> None:
        """A reduction left tokens of these (B,N,1) sizes; one of size 0 is an empty slot."""


OBSERVERS: list[Any] = []


@contextlib.contextmanager
def observing(observer: Any) -> Iterator[Any]:
    """Let `observer` watch every reduced forward pass in the block."""
    OBSERVERS.append(observer)
    try:
        yield observer
    finally:
        OBSERVERS.remove(observer)


DRAWS: list[dict[Any, int]] = []


@contextlib.contextmanager
def redrawing() -> Iterator[None]:
    """Number the batches in the block from 0, in each tower: `Site.draw`.

    Random methods draw anew in each, so that one pass over a data set averages over their draws.
    """
    counts: dict[Any, int] = {}
    DRAWS.append(counts)
    try:
        yield
    finally:
        DRAWS.pop()
