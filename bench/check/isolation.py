"""Properties: nothing stays behind in model or method, and no random number is shared."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator

import numpy as np
import torch

from bench.check.probe import Broken, Probe
from bench.check.subject import Subject, changed, snapshot
from bench.core import Plan, Site
from bench.engine.reduce import reduced
from bench.engine.tower import override


def state(probe: Probe) -> str:
    """Model and method are after a pass as before, also after an exception; copies are whole."""
    for seen in probe.passes:
        for call in seen.calls:
            if call.in_place:
                raise Broken(f"layer {call.site.layer} writes into site.{call.in_place[0]}")
    with torch.no_grad():
        _forgets(probe)
        _leaves_the_model(probe)
    return ""


def _forgets(probe: Probe) -> None:
    used, others = probe.make(), probe.subject.others
    probe.watch(used)
    if not torch.equal(
        probe.watch(used, inputs=others).out, probe.watch(probe.make(), inputs=others).out
    ):
        raise Broken("the method remembers: a pass over other samples changes the next one")


def _leaves_the_model(probe: Probe) -> None:
    subject = probe.subject
    model = subject.model
    reducer = probe.make()
    with (
        contextlib.suppress(Interrupted),
        override(reducer, "plan", _interrupt),
        reduced(model, reducer, **probe.budget(reducer)),
    ):
        subject.run()
        raise Interrupted
    unchanged(subject)
    with reduced(model, reducer, **probe.budget(reducer)):
        subject.run()
        if not torch.equal(subject.run(model=subject.twin), subject.plain):
            raise Broken("a copy of the model made before is reduced with it")
    unchanged(subject)
    for name, one in {"the model": model, "a copy of the model": copy.deepcopy(model)}.items():
        if not torch.equal(subject.run(model=one), subject.plain):
            raise Broken(f"{name} answers otherwise afterwards than before")


class Interrupted(Exception):
    """Something else in a program went wrong in the middle of a pass."""


def _interrupt(site: Site, r: int) -> Plan:
    raise Interrupted


def unchanged(subject: Subject) -> None:
    """The model has the attributes and weights that it had at first."""
    names = set(changed(subject.before, snapshot(subject.model))) - subject.renewed
    if names:
        raise Broken(f"the model's {min(names)} is changed afterwards")


def deterministic(probe: Probe) -> str:
    """Twice the same, whatever the global random state, which is left alone."""
    with _random_state_kept(), torch.no_grad():
        _twice(probe)
        if "seed" in getattr(probe.method, "__dataclass_fields__", {}):
            _twice(probe, seed=1)
            return "seeded"
    return ""


def _twice(probe: Probe, **seed: int) -> None:
    said = f" with seed={seed['seed']}" if seed else ""
    outs = []
    for number in (1, 2):
        reducer = probe.make(**seed)
        _seed_everything(number)
        before = _random_states()
        outs.append(probe.watch(reducer).out)
        drew = [name for name, value in _random_states().items() if value != before[name]]
        if drew:
            raise Broken(f"it draws from {drew[0]}'s global random state{said}")
    if not torch.equal(*outs):
        far = float((outs[0] - outs[1]).abs().max())
        raise Broken(f"two passes differ by {far:.2g}{said}")


def _seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def _random_states() -> dict[str, str]:
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": str(torch.get_rng_state().tolist()),
        "numpy": str((kind, np.asarray(keys).tolist(), *rest)),
        "random": str(random.getstate()),
    }


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
