"""Named hardware profiles: what to measure with, and what the data sheet promises.

They are written in bench/assets/data/profiles.yaml; a new one is an entry there.

A profile is asked for by name and must fit the machine; `auto` takes the one that does. Nothing
falls back silently: a figure taken on other hardware than it says is worse than none.

    profile = profiles.load("h100")    # one line of error where there is no H100
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files

import torch
import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from bench.core.errors import BenchError, near_miss
from bench.measure.machine import gpu_name as _cuda_name

AUTO = "auto"
_STRICT = ConfigDict(extra="forbid")  # a misspelt field of the file is an error


@dataclass(frozen=True)
class Sheet:
    """What a data sheet promises, and for exactly which part.

    Attributes:
        peak_tflops: dense peak by dtype, in 10^12 operations a second (a multiply-accumulate is
            two). float32 is without tensor cores, as PyTorch runs it by default.
        bandwidth_gbs: memory bandwidth in 10^9 bytes a second.
        source: the document, and the part it is about.
        part: regular expression that this part's device name matches.
        multiprocessors: how many it has; a smaller sister or a MIG slice has fewer.
    """

    __pydantic_config__ = _STRICT

    # as written: they are part of records' keys; a mapping has no hash, and profiles need one
    peak_tflops: Mapping[str, int | float] = field(hash=False)
    bandwidth_gbs: int | float
    source: str
    part: str
    multiprocessors: int


@dataclass(frozen=True)
class Profile:
    """How to measure on one kind of hardware.

    Attributes:
        name: what `--profile` takes.
        device: "cpu" or "cuda".
        match: regular expression on the CUDA device's name.
        dtypes: numeric types to time, by PyTorch's names.
        batch_sizes: samples a call; 1 is always there.
        backends: attention implementations to time.
        threads: PyTorch's intra-op threads, None for every core there is.
        warmup: untimed calls first.
        repeats: timed pairs.
        sheet: the data sheet, None where there is none or it is not about this very part.
    """

    __pydantic_config__ = _STRICT

    name: str
    device: str
    match: str = ""
    dtypes: tuple[str, ...] = ("float32",)
    batch_sizes: tuple[int, ...] = (1, 8)
    backends: tuple[str, ...] = ("sdpa",)
    threads: int | None = None
    warmup: int = 2
    repeats: int = 15
    sheet: Sheet | None = None

    @property
    def peak_tflops(self) -> Mapping[str, float] | None:
        """Data-sheet dense peak by dtype, in 10^12 operations a second, where it is known."""
        return self.sheet.peak_tflops if self.sheet else None

    @property
    def bandwidth_gbs(self) -> float | None:
        """Data-sheet memory bandwidth in 10^9 bytes a second, where it is known."""
        return self.sheet.bandwidth_gbs if self.sheet else None

    @property
    def source(self) -> str:
        """Where peak and bandwidth come from."""
        return self.sheet.source if self.sheet else "no data sheet for this part"


@functools.cache
def _profiles() -> dict[str, Profile]:
    return read((files("bench.assets.data") / "profiles.yaml").read_text(encoding="utf-8"))


def read(text: str) -> dict[str, Profile]:
    """Return the profiles of a YAML document, by name and in order; names with a dot are parts.

    Raises:
        BenchError: a field is missing, unknown or of another type.
    """
    entries = {k: v for k, v in yaml.safe_load(text).items() if not k.startswith(".")}
    named = {name: {**entry, "name": name} for name, entry in entries.items()}
    try:
        return TypeAdapter(dict[str, Profile]).validate_python(named)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise BenchError(f"bench/assets/data/profiles.yaml: {place}: {first['msg']}") from error


def names() -> list[str]:
    """Every profile's name, `auto` excepted."""
    return list(_profiles())


def get(name: str) -> Profile:
    """The profile as it is written, whether this machine has that hardware or not.

    Raises:
        BenchError: no profile has that name.
    """
    if name not in _profiles():
        raise BenchError(
            f"unknown profile '{name}'{near_miss(name, [AUTO, *names()], 'list profiles')}"
        )
    return _profiles()[name]


def load(name: str) -> Profile:
    """The named profile, checked against this machine; `auto` is the one that fits it.

    Raises:
        BenchError: no such profile, or not that hardware.
    """
    if name == AUTO:
        return detect()
    profile = get(name)
    require(profile)
    return _with_fitting_sheet(profile)


def detect() -> Profile:
    """The first CUDA profile that matches this machine's GPU, or `cpu` where there is no GPU.

    Raises:
        BenchError: there is a GPU, but no profile knows it.
    """
    device = _cuda_name()
    if device is None:
        return get("cpu")
    for profile in _profiles().values():
        if profile.device == "cuda" and re.search(profile.match, device):
            return _with_fitting_sheet(profile)
    raise BenchError(
        f"no profile knows the GPU '{device}'; use --profile cpu, or add one to "
        "bench/assets/data/profiles.yaml"
    )


def require(profile: Profile) -> None:
    """Check that this machine has the profile's hardware.

    Raises:
        BenchError: it has not; one line that says what was wanted and what is here.
    """
    if profile.device != "cuda":
        return
    device = _cuda_name()
    if device is None or not re.search(profile.match, device):
        here = "none" if device is None else f"'{device}'"
        raise BenchError(
            f"profile '{profile.name}' needs a CUDA device whose name matches '{profile.match}'; "
            f"this machine has {here} — use --profile cpu or auto"
        )


def _with_fitting_sheet(profile: Profile) -> Profile:
    """The same without its data sheet, if that is about another variant of the device."""
    sheet = profile.sheet
    if sheet is None:
        return profile
    fits = re.search(sheet.part, _cuda_name() or "") and _multiprocessors() == sheet.multiprocessors
    return profile if fits else replace(profile, sheet=None)


def _multiprocessors() -> int:
    return int(torch.cuda.get_device_properties().multi_processor_count)
