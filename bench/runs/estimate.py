"""How long a pass would take with each of a few methods on hardware that is not here: in ranges.

    python run_bench.py estimate timm:vit_base_patch16_224 --method tome --r 13 --on h100,l4
    python run_bench.py estimate llava-1.5-7b-hf --method divprune --on h100,jetson-orin --json

The model is built on the meta device, and `bench.measure.roofline` times its operators. The result
is printed; it goes into no record, so that no report can show it beside what was measured.
"""

from __future__ import annotations

import contextlib
import inspect
import json as jsonlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench import reduced
from bench.core.errors import BenchError, Unsupported, check_known
from bench.measure import rates, roofline
from bench.measure.generation import speaker
from bench.measure.operators import Operator, operators
from bench.measure.roofline import Device, Range
from bench.models.loaded import Loaded, Multimodal
from bench.models.noise import WORDS
from bench.records.record import BASELINE, EAGER, ENGINES, label
from bench.runs.checking import placed
from bench.runs.shape_only import Requests, on_meta
from bench.runs.spec import Options

KIND = "estimated"
CPU_DTYPES = ("float32", "bfloat16", "float16")
Asked = Sequence[tuple[str, Mapping[str, Any]]]  # methods with their arguments


@dataclass(frozen=True)
class Ran:
    """The operators of a pass with a method, the unreduced one first; or why it cannot run."""

    method: str
    operators: Sequence[Operator] = ()
    unsupported: str = ""


@dataclass(frozen=True)
class Estimate:
    """What one method would take on one device: milliseconds a pass, and the speed-up."""

    device: Device
    method: str
    ms: Range | None = None
    speedup: Range | None = None
    unsupported: str = ""


@dataclass(frozen=True)
class Pass:
    """What is run: samples a pass, the engine, tokens of a prompt beside its image's."""

    batch: int = 1
    engine: str = EAGER
    words: int | None = None


# --- what would run ------------------------------------------------------------------------------


def passes(loaded: Loaded, asked: Asked, setting: Pass) -> list[Ran]:
    """Return the operators of the unreduced model and of each method, without values."""
    ran = [Ran(BASELINE, _pass(loaded, setting))]
    for name, params in asked:
        if name == BASELINE:
            continue
        try:
            with reduced(loaded.model, name, **params):
                ran.append(Ran(label(name, params), _pass(loaded, setting)))
        except Unsupported as reason:
            ran.append(Ran(label(name, params), unsupported=str(reason)))
    return ran


def _pass(loaded: Loaded, setting: Pass) -> list[Operator]:
    with _inputs(loaded, setting) as inputs:
        return operators(loaded.model, **inputs)


@contextlib.contextmanager
def _inputs(loaded: Loaded, setting: Pass) -> Iterator[dict[str, Any]]:
    """Give a batch without values; of a multimodal model a prompt, up to its first new token."""
    with loaded.valueless_inputs(setting.words) as inputs:
        if not isinstance(loaded, Multimodal):
            yield {key: _repeated(value, setting.batch) for key, value in inputs.items()}
            return
        known = inspect.signature(type(speaker(loaded.model)).forward).parameters
        last = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        yield {**inputs, **last, "use_cache": True}


def _repeated(value: Any, times: int) -> Any:
    """Return an input of one sample as that of several."""
    return value.repeat(times, *[1] * (value.dim() - 1)) if isinstance(value, Tensor) else value


# --- how long it would take ----------------------------------------------------------------------


def devices(text: str | None) -> list[str]:
    """Return the devices named in a list such as "h100,cpu"; all with a data sheet for None.

    Raises:
        BenchError: a name is unknown, or there is none.
    """
    known = [*roofline.sheets(), rates.NAME]
    names = [name.strip() for name in (text or ",".join(roofline.sheets())).split(",")]
    for name in names:
        check_known("--on: unknown device", name, known)
    return list(dict.fromkeys(names))


def device(name: str, dtype: str | None, plain: Sequence[Operator]) -> Device:
    """Return a device by its data sheet, or this machine's CPU, which is measured for it."""
    if name == rates.NAME:
        return rates.this_cpu(plain, dtype_of(name, dtype))
    return roofline.on_sheet(name, dtype)


def dtype_of(name: str, dtype: str | None) -> str:
    """Return the dtype in which a device computes: what was asked for, else its profile's first.

    Raises:
        BenchError: it does not compute in that dtype.
    """
    if name != rates.NAME:
        return roofline.on_sheet(name, dtype).dtype
    dtype = dtype or CPU_DTYPES[0]
    check_known("--dtype: a CPU computes in no", dtype, CPU_DTYPES)
    return dtype


def estimates(ran: Sequence[Ran], device: Device, engine: str) -> list[Estimate]:
    """Return what each pass would take on a device; the first is the unreduced model's."""
    plain = roofline.seconds(ran[0].operators, device, engine)
    rows = []
    for one in ran:
        if one.unsupported:
            rows.append(Estimate(device, one.method, unsupported=one.unsupported))
            continue
        times = roofline.seconds(one.operators, device, engine)
        ms = Range.of([1e3 * value for value in times])
        rows.append(Estimate(device, one.method, ms, roofline.speedup(plain, times)))
    return rows


# --- what is shown -------------------------------------------------------------------------------


def main(
    model: str,
    asked: Asked,
    setting: Pass,
    on: str | None = None,
    dtype: str | None = None,
    json: bool = False,
) -> int:
    """Print the estimates; returns the exit status, 1 where a method cannot run in this model."""
    names = devices(on)
    check_known("--engine: unknown engine", setting.engine, ENGINES)
    dtypes = {name: dtype_of(name, dtype) for name in names}
    ran: dict[str, list[Ran]] = {}
    rows: list[Estimate] = []
    for name in names:
        if dtypes[name] not in ran:
            loaded = _checked(on_meta(model, dtypes[name]), asked, setting)
            ran[dtypes[name]] = passes(loaded, asked, setting)
        passed = ran[dtypes[name]]
        rows += estimates(passed, device(name, dtypes[name], passed[0].operators), setting.engine)
    scope = loaded.scope
    if isinstance(loaded, Multimodal):
        words = WORDS if setting.words is None else setting.words
        scope = f"a prompt of one image and {words} other tokens, up to the first new token"
    if json:
        print(jsonlib.dumps(_document(model, scope, setting, rows), indent=1))
    else:
        _print(model, scope, setting, rows)
    return 1 if any(row.unsupported for row in rows) else 0


def _checked(loaded: Loaded, asked: Asked, setting: Pass) -> Loaded:
    """Return the model; raises BenchError for what makes no sense in it."""
    if isinstance(loaded, Multimodal) and setting.batch != 1:
        raise BenchError(f"--batch {setting.batch}: {loaded.name} answers one prompt at a time")
    requests = Requests(loaded)
    for name, params in asked:
        with placed(Options(params), 0, params), contextlib.suppress(Unsupported):
            requests.check(name, params)
    return loaded


def _document(model: str, scope: str, setting: Pass, rows: list[Estimate]) -> dict[str, Any]:
    def shown(row: Estimate) -> dict[str, Any]:
        about = {"device": row.device.name, "dtype": row.device.dtype, "method": row.method}
        if row.ms is None or row.speedup is None:
            return {**about, "unsupported": row.unsupported}
        return {**about, "ms": _limits(row.ms), "speedup": _limits(row.speedup)}

    return {
        "kind": KIND,
        "model": model,
        "scope": scope,
        "batch": setting.batch,
        "engine": setting.engine,
        "sources": {row.device.name: row.device.source for row in rows},
        "estimates": [shown(row) for row in rows],
    }


def _limits(values: Range) -> dict[str, float]:
    return {key: value for key, value in asdict(values).items() if key != "point"}


def _print(model: str, scope: str, setting: Pass, rows: list[Estimate]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # in a log: wide enough for the table
    about = f"{model}: {KIND} by a roofline, not measured; {scope}"
    about += f", batch {setting.batch}, {setting.engine}"
    console.print(about, markup=False, highlight=False, soft_wrap=True)
    table = Table()
    for name in ("on", "dtype", "method"):
        table.add_column(name, overflow="fold")
    for name in ("ms a pass, estimated", "speed-up, estimated"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = [_text(row.ms, ".3g"), _text(row.speedup, ".2f")]
        table.add_row(row.device.name, row.device.dtype, row.method, *cells)
    console.print(table)
    for method, reason in {row.method: row.unsupported for row in rows if row.unsupported}.items():
        console.print(f"{method}: {reason}", markup=False)


def _text(values: Range | None, form: str) -> str:
    if values is None:
        return "—"
    low, high = format(values.low, form), format(values.high, form)
    return low if low == high else f"{low} – {high}"
