"""Named hardware profiles: what to measure with, and what the data sheet promises.

A profile is asked for by name and must fit the machine; `auto` takes the one that does. Nothing
falls back silently: a figure taken on other hardware than it says is worse than none.

    profile = profiles.load("h100")    # one line of error where there is no H100
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from bench.core.errors import BenchError

AUTO = "auto"


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

    peak_tflops: Mapping[str, float]
    bandwidth_gbs: float
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


def _gpu(
    name: str,
    match: str,
    sheet: Sheet,
    batch_sizes: tuple[int, ...] = (1, 32, 256),
) -> Profile:
    return Profile(
        name=name,
        device="cuda",
        match=match,
        dtypes=tuple(dtype for dtype in sheet.peak_tflops if dtype != "float32"),
        batch_sizes=batch_sizes,
        backends=("sdpa", "eager"),
        warmup=10,
        repeats=50,
        sheet=sheet,
    )


def _peaks(half: float, single: float, *, bfloat16: bool = True) -> dict[str, float]:
    halves = ("bfloat16", "float16") if bfloat16 else ("float16",)
    return {**dict.fromkeys(halves, half), "float32": single}


_PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("cpu", "cpu"),
        Profile("cpu-1-thread", "cpu", threads=1),
        _gpu(
            "h100",
            "H100",
            Sheet(_peaks(989.4, 66.9), 3350, "NVIDIA H100 data sheet, SXM5", "H100.*HBM3", 132),
        ),
        _gpu(
            "h200",
            "H200",
            Sheet(_peaks(989.4, 66.9), 4800, "NVIDIA H200 data sheet, SXM", r"H200(?!.*NVL)", 132),
        ),
        _gpu(
            "a100",
            "A100",
            Sheet(
                _peaks(312, 19.5), 2039, "NVIDIA A100 data sheet, SXM 80GB", "A100-SXM.*80GB", 108
            ),
        ),
        _gpu(
            "l4",
            r"\bL4\b",
            Sheet(_peaks(121, 30.3), 300, "NVIDIA L4 data sheet (halved: dense)", r"\bL4\b", 58),
            (1, 32, 128),
        ),
        _gpu(
            "t4",
            r"\bT4\b",
            Sheet(_peaks(65, 8.1, bfloat16=False), 300, "NVIDIA T4 data sheet", r"\bT4\b", 40),
            (1, 32, 128),
        ),
        _gpu(
            "rtx4090",
            r"RTX 4090(?! (D|Laptop))",
            Sheet(
                _peaks(165.2, 82.6),
                1008,
                "NVIDIA Ada architecture whitepaper, FP32 accumulation",
                "RTX 4090",
                128,
            ),
            (1, 32, 128),
        ),
        _gpu(
            "jetson-orin",
            r"\bOrin\b",
            Sheet(
                _peaks(42.5, 5.3),
                204.8,
                "NVIDIA Jetson AGX Orin technical brief, 64GB (INT8 170 sparse / 4)",
                r"\bOrin\b",
                16,
            ),
            (1, 8),
        ),
    )
}


def names() -> list[str]:
    """Every profile's name, `auto` excepted."""
    return list(_PROFILES)


def get(name: str) -> Profile:
    """The profile as it is written, whether this machine has that hardware or not.

    Raises:
        BenchError: no profile has that name.
    """
    if name not in _PROFILES:
        from bench.core.errors import near_miss

        raise BenchError(f"unknown profile '{name}'{near_miss(name, [AUTO, *names()])}")
    return _PROFILES[name]


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
    for profile in _PROFILES.values():
        if profile.device == "cuda" and re.search(profile.match, device):
            return _with_fitting_sheet(profile)
    raise BenchError(
        f"no profile knows the GPU '{device}'; use --profile cpu, or add one to "
        "bench/records/profiles.py"
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


def _cuda_name() -> str | None:
    """Name of the current CUDA device, None without one."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _multiprocessors() -> int:
    import torch

    return int(torch.cuda.get_device_properties().multi_processor_count)
