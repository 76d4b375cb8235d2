"""What a pass keeps of a method that comes down to its budget over several blocks."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from bench.core import Plan, Site, observe
from bench.core.kinds import Gradual
from bench.core.site import GradualSite


class Trail:
    """The running score of a gradual method, for one sequence.

    Attributes:
        score: (B,N) of the present tokens; None before the first one and without such a method.
        remaining: how many blocks away the last cut is.
    """

    def __init__(self) -> None:
        """Nothing was scored yet."""
        self.score: Tensor | None = None
        self.remaining = 0

    def follow(self, reducer: Gradual, site: Site) -> bool:
        """Bring the score up to date; whether the method may cut at this block."""
        if not site.q.shape[-1]:  # ahead of the first block
            return False
        for observer in observe.OBSERVERS:
            observer.enter("reduction")
        self.score = reducer.rate(site, self.score)
        for observer in observe.OBSERVERS:
            observer.exit("reduction")
        return self.remaining % reducer.every == 0

    def shown(self, site: Site) -> Site:
        """The site with the score on it, where there is one."""
        if self.score is None:
            return site
        return GradualSite(**vars(site), running=self.score, remaining=self.remaining)

    def carry(self, plan: Plan) -> None:
        """Go on with the tokens after a plan; those that it makes have no score."""
        if self.score is not None:
            made = 0 if plan.extra is None else plan.extra.shape[1]
            self.score = F.pad(self.score.gather(1, plan.keep.clamp(min=0)), (0, made))
