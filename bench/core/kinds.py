"""Kinds of methods: what a `Reducer` has to say where it is more than a plan for each block.

A method inherits from as many of these as apply; the harness asks with `isinstance`. Methods that
bring tensors which training learns are in `bench.core.learner`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from bench.core.reducer import Reducer
from bench.core.site import Site


class Bounded(Reducer):
    """A method that can remove all tokens of a layer but `least`, as clusters need a centre.

    Attributes:
        least: how many of the unprotected tokens always stay.
    """

    max_share: ClassVar[float] = 1.0
    least: ClassVar[int] = 1

    def feasible(self, r: int, tokens: int, grid: tuple[int, int] | None) -> int:
        """The removal nearest to `r` that leaves `least` of `tokens` removable ones."""
        return super().feasible(min(r, tokens - self.least), tokens, grid)


class Compounding(Reducer):
    """A method whose keep rate is a share of the tokens at the start, as TopK's.

    It compounds over the layers and rounds down. The keep rate of any other method is a share of
    the tokens that are there, and rounds up, as EViT's, unless the method says otherwise.
    """

    def kept(self, rate: float, tokens: int, fixed: int) -> int:
        """How many tokens stay of the `tokens` removable ones at the start, rounded down."""
        return int(rate * tokens)


class Adaptive(Reducer):
    """A method that may keep fewer tokens of a sample than it is asked to.

    A schedule then goes by its own count of tokens, as if all that it allows had stayed, and `plan`
    is asked to bring the tokens that are there down to that count: its `r` is 0 or less where an
    earlier layer did so already.

    Attributes:
        adaptive: False where its parameters make it keep what it is asked to.
    """

    adaptive: bool = True


class Gradual(Adaptive):
    """A method that comes down to its budget over several blocks, by a score that runs along.

    Ahead of each block, up to the last at which its schedule removes tokens, it brings the score up
    to date. At every few of them `plan` is asked, on a `GradualSite`: its `r` says how many tokens
    are still to go, and all of them go at the last.

    Attributes:
        every: of how many blocks it may cut at one, counted back from the last.
    """

    before: ClassVar[bool] = True
    every: ClassVar[int] = 1

    def rate(self, site: Site, running: Tensor | None) -> Tensor:
        """(B,N) the score after the block that `site` has q, k and v of; at first None before."""
        raise NotImplementedError


def is_adaptive(method: Reducer | type[Reducer]) -> bool:
    """Whether how many tokens a method keeps depends on the sample; of a class, by default."""
    if isinstance(method, type):
        return issubclass(method, Adaptive) and method.adaptive
    return isinstance(method, Adaptive) and method.adaptive


class Stochastic(Reducer):
    """A method with a parameter `seed`, by which chance decides the tokens that go.

    Attributes:
        seeds: its accuracy is the mean over so many values of `seed`.
    """

    seeds: ClassVar[int] = 5


class Appender(Reducer):
    """A method that adds tokens of its own at the end of a sequence, where they never merge.

    Attributes:
        appends: how many.
        visits: towers in which it adds none, but refreshes the first token of a prompt.
        handed_on: those of an image encoder go on to a language model, behind the image's tokens
            and in place of removed ones.
    """

    appends: ClassVar[int] = 1
    visits: ClassVar[tuple[str, ...]] = ()
    handed_on: bool = False

    def append(self, x: Tensor, anchor: Tensor | None, tower: str) -> Tensor:
        """(B,N,C) -> (B,appends,C): tokens to add before the first block."""
        raise NotImplementedError

    def refresh(self, x: Tensor, anchor: Tensor | None, layer: int, tower: str) -> Tensor:
        """(B,N,C) -> (B,N,C): the sequence as this layer shall see it."""
        return x


class ProjectorReducer(Bounded):
    """A method that acts on image features, ahead of the projector into a language model.

    Its sites are `ProjectorSite`s. With `before = False` it acts on the projected tokens.

    Attributes:
        reads: the block whose q, k, v it sees, counted from the one that makes the features (1:
            the block after); None if it looks at none.
        keeps_class: the class token goes to the language model too.
        newlines: where crops are put together to an image, the model's tokens for new lines stay.
        reads_words: it sees tokens and question in CLIP's joint space, a long question "cut" to
            what CLIP reads, or in "segments"; "" if it looks at no words.
    """

    towers: ClassVar[tuple[str, ...]] = ("projector",)
    before: ClassVar[bool] = True
    reads: ClassVar[int | None] = 0
    keeps_class: ClassVar[bool] = False
    newlines: ClassVar[bool] = True
    reads_words: ClassVar[str] = ""

    def also_reads(self, depth: int) -> Sequence[int]:
        """Further blocks (0-based) of an encoder of `depth` whose q, k, v it sees, in order."""
        return ()


class VideoReducer(ProjectorReducer):
    """A method that compares the frames of a video, behind the projector; images it refuses.

    Its sites have `frames` of two or more.
    """

    before: ClassVar[bool] = False
    reads: ClassVar[int | None] = None


class LanguageReducer(Bounded):
    """A method that takes the image's tokens out of a prompt, on the input of a block.

    Its sites are `LanguageSite`s.

    Attributes:
        renumbers: positions count on without gaps after a removal.
    """

    towers: ClassVar[tuple[str, ...]] = ("language",)
    before: ClassVar[bool] = True
    renumbers: ClassVar[bool] = False


class DecodeReducer(Bounded):
    """A method by which a new token sees some of the image's keys in the KV cache, not all.

    `plan` is asked at each new token, sample by sample, on a `DecodeSite`. What it keeps are keys:
    the block ahead of which it acts and all blocks behind attend to those alone. Nothing leaves
    the cache, and a prompt is not reduced.
    """

    towers: ClassVar[tuple[str, ...]] = ("language",)
    before: ClassVar[bool] = True


class InputReducer(Reducer):
    """A method that makes the input image smaller, so that no block ever sees the other tokens."""

    def resize(
        self, keep_rate: float, height: int, width: int, patch: tuple[int, int]
    ) -> tuple[int, int]:
        """The image size to run at, in pixels, for one of `height` by `width`."""
        raise NotImplementedError


class Composition(Reducer):
    """Several methods under one name."""

    @property
    def parts(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """Methods, each with its arguments for `reduced()`, that are run in place of this one."""
        raise NotImplementedError
