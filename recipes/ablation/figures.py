"""Draw a study: accuracy against MACs before and after fine-tuning, and the ablation chains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.report.data.names import metric_name, setting
from bench.report.figures import style
from bench.report.figures.drawing import BLACK, legend, moved, shift_of
from bench.report.figures.plots import Plot
from recipes.ablation.chains import METHOD, Chain, chains
from recipes.ablation.estimates import Estimate, over_samples, over_seeds
from recipes.ablation.studies import UNREDUCED, Setting, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Looks = Mapping[str, style.Look]
GREY = "#555555"
TRAINED, UNTRAINED = "fine-tuned\n(mean, 95 % over seeds)", "not fine-tuned"
FILLED = "filled, fine-tuned, mean over seeds with Student's 95 % interval; hollow,"
DASHES = (0, (3, 2))
HALF_STEP = 0.17  # how far the two points of a step stand apart, in steps


def plots(study: Study) -> list[Plot]:
    """Return the figures that a study's data allow."""
    result = []
    towers = _towers(study)
    if towers:
        draw = partial(accuracy, study, towers)
        caption = f"Accuracy against MACs by reduced towers: {FILLED} the same not fine-tuned."
        result.append(Plot(f"{study.name}--accuracy-gmacs", caption, draw))
    found = [chain for chain in chains(study) if chain.is_ablation]
    if found:
        draw = partial(ablation, study, found)
        caption = f"What each part of CrossGET adds to {metric_name(study.verdict)}: {FILLED} the "
        caption += "same not fine-tuned; dashed, the unreduced model fine-tuned."
        result.append(Plot(f"{study.name}--ablation", caption, draw))
    if any(one.losses for one in study.settings):
        caption = "Training loss by step: each line the mean over seeds, its band from the lowest "
        caption += "to the highest. What crossget minimises has its alignment loss in it, so only "
        caption += "its shape can be compared."
        result.append(Plot(f"{study.name}--loss", caption, partial(curves, study)))
    return result


def _whole(study: Study) -> list[Setting]:
    """Return the settings of whole methods; parts of one stand in the ablation, if there is one."""
    best: dict[tuple[str, str], Setting] = {}
    parts_apart = any(chain.is_ablation for chain in chains(study))
    for one in study.settings:
        name = (one.method, str(one.params))
        if one.share is None or (one.variant and parts_apart):
            continue
        if name not in best or (one.weight or 0.0) > (best[name].weight or 0.0):
            best[name] = one
    return list(best.values())


def _towers(study: Study) -> list[str]:
    """Return the sets of towers that something was fine-tuned with, the fewest towers first."""
    found = {s.towers for s in _whole(study) if s.trained and s.method != UNREDUCED and s.towers}
    return sorted(found, key=lambda name: (name.count("+"), name))


def accuracy(study: Study, towers: Sequence[str]) -> Figure:
    """Draw one column of panels a set of towers, one row a metric."""
    from matplotlib.figure import Figure

    metrics = list(dict.fromkeys([study.primary, study.verdict]))
    size = (style.active().text_in, (0.5 + 2.1 * len(metrics)) * style.active().scale)
    figure = Figure(figsize=size, layout="constrained")
    shape = (len(metrics), len(towers))
    grid = figure.subplots(*shape, sharex=True, sharey="row", squeeze=False)
    settings = _whole(study)
    looks = style.looks(s.series for s in settings)
    for metric, line in zip(metrics, grid, strict=True):
        line[0].set_ylabel(f"{metric_name(metric)} (%)")
        for tower, ax in zip(towers, line, strict=True):
            own = [s for s in settings if s.towers == tower or s.method == UNREDUCED]
            _panel(ax, own, metric, looks)
    for tower, ax in zip(towers, grid[0], strict=True):
        ax.set_title(f"{tower.replace('+', ' and ')} tower{'s' if '+' in tower else ''} reduced")
    for ax in grid[-1]:
        ax.set_xlabel("GMACs")
    methods = sorted({s.series for s in settings if s.towers in towers})
    legend(figure, _handles(methods, looks))
    figure.suptitle(style.safe(study.title, 110), x=0.01, ha="left")
    return figure


def _panel(ax: Axes, settings: Sequence[Setting], metric: str, looks: Looks) -> None:
    """Draw every method's settings, the unreduced model also as lines across the panel."""
    methods = sorted({one.series for one in settings})
    for method in reversed(methods):  # the first, which is CrossGET here, on top
        own = [(_gmacs(s), s) for s in settings if s.series == method]
        own.sort(key=lambda pair: pair[0])
        look = looks[method]
        before = [(x, over_samples(s.untrained, metric)) for x, s in own]
        after = [(x, over_seeds(list(s.scores(metric).values()))) for x, s in own]
        line = [(x, found.value) for x, found in before if found]
        if line:
            places = [x for x, _ in line], [y for _, y in line]
            ax.plot(*places, linestyle=DASHES, linewidth=0.8, **_hollow(look))
        known = [(x, found) for x, found in after if found]
        if known:
            shift = 0.0 if method == UNREDUCED else shift_of(method, methods)
            _trained(ax, [x for x, _ in known], [found for _, found in known], look, shift)
        if method == UNREDUCED:
            for found, dashes in ((before, (0, (1, 2))), (after, "--")):
                for value in [estimate.value for _, estimate in found if estimate]:
                    ax.axhline(value, color=BLACK, linewidth=0.7, linestyle=dashes, zorder=1)


def _gmacs(one: Setting) -> float:
    macs = one.record.cost.macs
    return macs.total / 1e9 if macs else float("nan")


def _trained(
    ax: Axes, xs: Sequence[float], found: Sequence[Estimate], look: style.Look, shift: float
) -> None:
    ys, halves = [one.value for one in found], _halves(found)
    bars = _bars(look) | {"transform": moved(ax, shift)}
    ax.errorbar(xs, ys, yerr=halves, fmt="none", **bars)
    ax.plot(xs, ys, linestyle="-" if len(xs) > 1 else "", zorder=3, **style.filled(look))
    for sign in (-1, 1):  # what was moved does not widen the axes
        ax.update_datalim([(x, y + sign * h) for x, y, h in zip(xs, ys, halves, strict=True)])
    ax.autoscale_view()


def _halves(found: Sequence[Estimate]) -> list[float]:
    return [one.high - one.value if one.high is not None else 0.0 for one in found]


def _bars(look: style.Look) -> dict[str, Any]:
    return {"ecolor": look.color, "elinewidth": 0.9, "capsize": 1.8, "capthick": 0.8, "zorder": 2.5}


def _hollow(look: style.Look) -> dict[str, Any]:
    shape: dict[str, Any] = {"color": look.color, "marker": look.marker, "zorder": 2.8}
    shape |= {"markersize": style.marker_size(look) - 0.5, "markerfacecolor": "white"}
    return shape | {"markeredgecolor": look.color, "markeredgewidth": 0.9}


def ablation(study: Study, found: Sequence[Chain]) -> Figure:
    """Draw one panel a budget, the steps from top to bottom."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(
        figsize=(style.active().text_in, 2.6 * style.active().scale), layout="constrained"
    )
    axes = list(figure.subplots(1, len(found), sharey=True, squeeze=False).flat)
    looks = style.looks([*(s.method for s in study.settings), METHOD, UNREDUCED])
    names: list[str] = []
    for ax, chain in zip(axes, found, strict=True):
        names = []
        for place, (name, one, untrained) in enumerate(_points(chain)):
            names.append(name)
            if one:
                _step(ax, place, one, study.verdict, looks[one.method], untrained)
        _reference(ax, study)
        ax.set_title(style.safe(_title(chain), 34))
        ax.set_xlabel(f"{metric_name(study.verdict)} (%)")
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        ax.axhline(len(names) - 1.5, color=GREY, linewidth=0.6)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    present = {one.method for chain in found for _, one, _ in _points(chain) if one}
    handles = _handles(sorted(present), looks)
    handles[0] = _line(color=BLACK, linestyle="--", linewidth=0.9, label="unreduced, fine-tuned")
    legend(figure, handles)
    figure.suptitle(style.safe(study.title, 110), x=0.01, ha="left")
    return figure


def _points(chain: Chain) -> Iterator[tuple[str, Setting | None, bool]]:
    """Yield each line's name and setting, and whether it stands for an untrained one too."""
    for step in chain.steps:
        yield step.part.name, step.setting, step.untrained
    one = chain.matched
    yield "tome, same MACs", one, bool(one and one.untrained)


def _title(chain: Chain) -> str:
    share = f", {chain.share:.0f} % of the MACs" if chain.share is not None else ""
    return setting(chain.budget) + share


def _step(
    ax: Axes, place: int, one: Setting, metric: str, look: style.Look, untrained: bool
) -> None:
    after = over_seeds(list(one.scores(metric).values()))
    before = over_samples(one.untrained, metric) if untrained else None
    if before:
        ax.plot([before.value], [place + HALF_STEP], linestyle="", **_hollow(look))
    if after:
        y = [place - HALF_STEP]
        ax.errorbar([after.value], y, xerr=_halves([after]), fmt="none", **_bars(look))
        ax.plot([after.value], y, linestyle="", zorder=3, **style.filled(look))


def _reference(ax: Axes, study: Study) -> None:
    base = study.unreduced
    after = over_seeds(list(base.scores(study.verdict).values())) if base else None
    if after:
        ax.axvline(after.value, color=BLACK, linewidth=0.9, linestyle="--", zorder=1)


def curves(study: Study) -> Figure:
    """Draw the training losses of every setting in one panel."""
    import numpy as np
    from matplotlib.figure import Figure

    size = (style.active().text_in, 2.6 * style.active().scale)
    figure = Figure(figsize=size, layout="constrained")
    ax = figure.subplots()
    looks = style.looks(s.series for s in study.settings)
    handles = []
    for one in (s for s in study.settings if s.losses):
        look, shared = looks[one.series], min(len(line) for line in one.losses)
        steps = [step for step, _ in one.losses[0][:shared]]
        values = np.array([[value for _, value in line[:shared]] for line in one.losses])
        dashes = DASHES if one.variant else "-"
        drawn: dict[str, Any] = {"color": look.color, "linestyle": dashes, "linewidth": 1.1}
        ax.plot(steps, values.mean(0), **drawn)
        ax.fill_between(steps, values.min(0), values.max(0), color=look.color, alpha=0.15, lw=0)
        handles.append(_line(label=style.short(one.series, 60), **drawn))
    ax.set_xlabel("step")
    ax.set_ylabel("training loss")
    legend(figure, handles)
    figure.suptitle(style.safe(study.title, 110), x=0.01, ha="left")
    return figure


def _line(**looks: Any) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], **looks)


def _handles(methods: Sequence[str], looks: Looks) -> list[Line2D]:
    star, grey = looks.get(UNREDUCED, style.KNOWN[UNREDUCED]), style.Look(GREY, "o")
    return [
        _line(linestyle="--", linewidth=0.9, label="none (unreduced)", **style.filled(star)),
        *(_line(label=style.short(name), **style.filled(looks[name])) for name in methods),
        _line(label=TRAINED, **style.filled(grey)),
        _line(label=UNTRAINED, linestyle=DASHES, linewidth=0.8, **_hollow(grey)),
    ]
