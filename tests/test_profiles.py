"""Hardware profiles: complete, found by name or by device, and never a silent fallback."""

from __future__ import annotations

import pytest

from bench.core.errors import BenchError
from bench.measure import profiles

DEVICES = {
    "h100": ("NVIDIA H100 80GB HBM3", 132),
    "h200": ("NVIDIA H200", 132),
    "a100": ("NVIDIA A100-SXM4-80GB", 108),
    "l4": ("NVIDIA L4", 58),
    "t4": ("Tesla T4", 40),
    "rtx4090": ("NVIDIA GeForce RTX 4090", 128),
    "jetson-orin": ("Orin", 16),
}
GPUS = [name for name in profiles.names() if profiles.get(name).device == "cuda"]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch):
    """Pretend that this machine has the named CUDA device (None: none)."""

    def set_device(name: str | None, multiprocessors: int = 0) -> None:
        monkeypatch.setattr(profiles, "_cuda_name", lambda: name)
        monkeypatch.setattr(profiles, "_multiprocessors", lambda: multiprocessors)

    return set_device


def test_the_list_is_what_was_promised() -> None:
    assert profiles.names() == ["cpu", "cpu-1-thread", *DEVICES]
    assert set(GPUS) == set(DEVICES)


@pytest.mark.parametrize("name", profiles.names())
def test_every_profile_is_complete(name: str) -> None:
    profile = profiles.get(name)
    assert profile.name == name
    assert 1 in profile.batch_sizes and len(profile.batch_sizes) > 1
    assert profile.repeats >= 5 and profile.warmup >= 1
    assert profile.dtypes and profile.backends and profile.source


@pytest.mark.parametrize("name", GPUS)
def test_a_run_can_look_something_up_by_profile(name: str) -> None:
    assert {profiles.get(name): name}[profiles.get(name)] == name


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_has_its_peak_for_each_dtype_it_times(name: str) -> None:
    profile = profiles.get(name)
    assert profile.peak_tflops is not None and profile.bandwidth_gbs is not None
    assert set(profile.dtypes) < set(profile.peak_tflops)
    half, single = profile.peak_tflops["float16"], profile.peak_tflops["float32"]
    # Dense figures: a sparse one, which sheets like to print, would be twice too high.
    assert 1.9 < half / single < 17
    assert 50 < half * 1e3 / profile.bandwidth_gbs < 450, "operations a byte, GPU-like"


@pytest.mark.parametrize(
    ("name", "half", "single", "bandwidth"),
    [  # dense TFLOPS of half and single precision, GB/s: read again off the data sheets
        ("h100", 989.4, 66.9, 3350),
        ("h200", 989.4, 66.9, 4800),
        ("a100", 312, 19.5, 2039),
        ("l4", 121, 30.3, 300),
        ("t4", 65, 8.1, 300),
        ("rtx4090", 165.2, 82.6, 1008),
        ("jetson-orin", 42.5, 5.3, 204.8),
    ],
)
def test_each_gpu_has_its_own_sheet(
    name: str, half: float, single: float, bandwidth: float
) -> None:
    profile = profiles.get(name)
    assert profile.peak_tflops is not None
    assert (profile.peak_tflops["float16"], profile.peak_tflops["float32"]) == (half, single)
    assert profile.bandwidth_gbs == bandwidth


def test_a_t4_is_not_timed_in_a_type_it_lacks() -> None:
    assert profiles.get("t4").dtypes == ("float16",)


@pytest.mark.parametrize("name", GPUS)
def test_missing_hardware_is_one_clear_line(name: str, device) -> None:
    device(None)
    with pytest.raises(BenchError) as error:
        profiles.load(name)
    line = str(error.value)
    assert "\n" not in line
    assert f"profile '{name}' needs a CUDA device" in line
    assert "this machine has none — use --profile cpu or auto" in line


def test_other_hardware_is_named(device) -> None:
    device("NVIDIA L4", 58)
    with pytest.raises(BenchError, match="matches 'H100'; this machine has 'NVIDIA L4'"):
        profiles.load("h100")
    assert profiles.load("cpu").device == "cpu"


@pytest.mark.parametrize(("name", "here"), DEVICES.items())
def test_auto_finds_the_profile_of_each_device(name: str, here: tuple[str, int], device) -> None:
    device(*here)
    assert profiles.load("auto") == profiles.load(name) == profiles.get(name)


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("h100", ("NVIDIA H100 PCIe", 114)),
        ("h100", ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 16)),
        ("h200", ("NVIDIA H200 NVL", 132)),
        ("a100", ("NVIDIA A100-SXM4-40GB", 108)),
        ("jetson-orin", ("Orin", 8)),
    ],
)
def test_another_variant_gets_no_peak_rather_than_a_wrong_one(
    name: str, here: tuple[str, int], device
) -> None:
    device(*here)
    profile = profiles.load(name)
    assert profile.peak_tflops is None and profile.bandwidth_gbs is None
    assert profile.source == "no data sheet for this part"


@pytest.mark.parametrize(
    "here", ["NVIDIA L40S", "NVIDIA GeForce RTX 4090 Laptop GPU", "Tesla V100"]
)
def test_an_unknown_gpu_is_an_error_not_the_nearest_name(here: str, device) -> None:
    device(here, 100)
    with pytest.raises(BenchError, match="no profile knows the GPU"):
        profiles.detect()


def test_auto_without_a_gpu_is_the_cpu(device) -> None:
    device(None)
    assert profiles.load("auto").name == "cpu"
    assert profiles.load("cpu-1-thread").threads == 1


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{device: cpu, thread: 1}", r"mine\.thread: Unexpected keyword argument"),
        ("{threads: 1}", r"mine\.device: Field required"),
        ("{device: cuda, sheet: {peak_tflops: many}}", r"mine\.sheet\.peak_tflops: "),
    ],
)
def test_a_profile_with_a_mistake_is_one_clear_line(entry: str, message: str) -> None:
    with pytest.raises(BenchError, match=f"profiles.yaml: {message}") as error:
        profiles.read(f"mine: {entry}")
    assert "\n" not in str(error.value)


def test_an_unknown_name_gets_its_near_miss() -> None:
    with pytest.raises(BenchError, match="unknown profile 'h1000'.*'h100'"):
        profiles.load("h1000")
