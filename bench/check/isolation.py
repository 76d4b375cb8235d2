"""Properties: nothing stays behind in model or method, and no random number is shared."""

from __future__ import annotations

import contextlib
import copy
import pickle
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bench.check.probe import Broken, Interrupted, NotApplicable, Probe
from bench.check.settings import kept_settings
from bench.check.subject import Subject
from bench.core import Plan, Reducer, Site
from bench.engine.reduce import reduced
from bench.engine.tower import override
from bench.measure.latency import using_threads


def state(probe: Probe) -> str:
    """Model, method and settings are after a pass as before; an exception or a copy included."""
    with kept_settings() as changed:
        for seen in probe.passes:
            for call in seen.calls:
                if call.in_place:
                    raise Broken(f"layer {call.site.layer} writes into site.{call.in_place[0]}")
        with torch.no_grad():
            _forgets(probe)
            _leaves_the_model(probe)
        with contextlib.suppress(NotApplicable):
            probe.at_first_decision(_leaves_threads)
        _named(changed())
    return ""


def _forgets(probe: Probe) -> None:
    used, others = probe.default.reducer, probe.subject.others
    again, anew = (probe.watch(reducer, inputs=others).out for reducer in (used, probe.make()))
    if not torch.equal(again, anew):
        raise Broken("the method remembers: a pass over other samples changes the next one")


def _leaves_threads(reducer: Reducer, site: Site, r: int) -> str:
    with using_threads(2), kept_settings() as changed:  # all else here runs on one
        reducer.plan(site, r)
        _named(changed())
    return ""


def _named(setting: str) -> None:
    if setting:
        raise Broken(f"it changes a setting of PyTorch's: {setting}")


def _leaves_the_model(probe: Probe) -> None:
    subject, reducer = probe.subject, probe.make()
    with (
        contextlib.suppress(Interrupted),
        override(reducer, "plan", _interrupt),
        reduced(subject.model, reducer, **probe.budget(reducer)),
    ):
        subject.run()
        raise Interrupted
    unchanged(subject)
    with reduced(subject.model, reducer, **probe.budget(reducer)):
        subject.run()
        if not torch.equal(subject.run(model=subject.twin), subject.plain):
            raise Broken("a copy of the model made before is reduced with it")
    unchanged(subject)
    models = {"the model": subject.model, "a copy of the model": copy.deepcopy(subject.model)}
    for name, model in models.items():
        if not torch.equal(subject.run(model=model), subject.plain):
            raise Broken(f"{name} answers otherwise afterwards than before")


def _interrupt(site: Site, r: int) -> Plan:
    raise Interrupted


def unchanged(subject: Subject) -> None:
    """The model has the attributes and weights that it had at first."""
    if name := subject.unchanged():
        raise Broken(f"the model's {name} is changed afterwards")


def deterministic(probe: Probe) -> str:
    """Twice the same, whatever the global random state, which is left alone."""
    with _random_state_kept(), torch.no_grad():
        _alike(probe.default.out, _drawn(probe, 1))
        if "seed" in getattr(probe.method, "__dataclass_fields__", {}):
            _alike(_drawn(probe, 1, seed=1), _drawn(probe, 2, seed=1), " with seed=1")
            return "seeded"
    return ""


def _drawn(probe: Probe, number: int, **seed: int) -> Tensor:
    """The answer in a global random state of this number, which stays as it is."""
    reducer = probe.make(**seed)
    for draw in (torch.manual_seed, np.random.seed, random.seed):
        draw(number)
    before = _random_states()
    out = probe.watch(reducer).out
    drew = [name for name, value in _random_states().items() if value != before[name]]
    if drew:
        with_seed = f" with seed={seed['seed']}" if seed else ""
        raise Broken(f"it draws from {drew[0]}'s global random state{with_seed}")
    return out


def _alike(one: Tensor, other: Tensor, with_seed: str = "") -> None:
    if not torch.equal(one, other):
        far = float((one - other).abs().max())
        raise Broken(f"two passes differ by {far:.2g}{with_seed}")


def _random_states() -> dict[str, bytes]:
    torchs = torch.get_rng_state().numpy()
    states = {"torch": torchs, "numpy": np.random.get_state(), "random": random.getstate()}
    return {name: pickle.dumps(value) for name, value in states.items()}


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
