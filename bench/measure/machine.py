"""Which machine this is, for records and for the results folder's name.

Of what names a host only a hash is kept.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "timm", "numpy")
_MACHINE_ID = Path("/etc/machine-id")
_CACHE_FILES = ("level", "type", "size")
_CACHE_KINDS = {"Data": "d", "Instruction": "i"}


@functools.cache
def cpu_name() -> str:
    """Return the processor's model name."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"


def gpu_name() -> str | None:
    """Return the CUDA device's name, or None without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def free_memory(device: str) -> int:
    """Return the bytes that a model could take now."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    info = Path("/proc/meminfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    return total_memory()


@functools.cache
def caches() -> str:
    """Return the sizes of the first processor's caches ("L1d 32K, L2 1024K"), "" where unknown."""
    sizes = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in _CACHE_FILES)
        except OSError:
            continue
        sizes.append(f"L{level}{_CACHE_KINDS.get(kind, '')} {size}")
    return ", ".join(sizes)


@functools.cache
def total_memory() -> int:
    """Return the bytes of memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@functools.cache
def hardware() -> str:
    """Return what tells kinds of machine apart that share a processor's name, as a hash."""
    return _short_hash(cpu_name(), os.cpu_count(), round(total_memory() / 2**30), caches())


@functools.cache
def fingerprint() -> str:
    """Return a hash of this host: of its name, its machine id and its hardware.

    Images of machines and containers are copied with their id, hence the name beside it.
    """
    machine_id = _MACHINE_ID.read_text() if _MACHINE_ID.is_file() else ""
    return _short_hash(platform.node(), machine_id.strip(), hardware())


def _short_hash(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:12]


def slug(device: str, threads: int) -> str:
    """Return the folder name of this machine's records: `cpu-MODEL-2t`, or the GPU's name."""
    name = gpu_name() if device == "cuda" else None
    text = name or f"cpu {cpu_name()} {threads}t"
    text = re.sub(r"\((r|tm|c)\)|@.*?ghz|\b(cpu|processor)\b(?!.*\d+t$)", " ", text, flags=re.I)
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def environment(machine: str, device: str, threads: int) -> dict[str, Any]:
    """Return what a record says about hardware and software."""
    return {
        "machine": machine,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(total_memory() / 2**30, 1),
        "caches": caches(),
        "fingerprint": fingerprint(),
        "gpu": gpu_name() if device == "cuda" else None,
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "threads": threads,
        "git": git_state(),
    }


@functools.cache
def git_state() -> str | None:
    """Return the commit of this project's checkout, `+` behind it where files differ from it.

    Records and reports are no part of what is measured with: a run itself changes them.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "--short", "HEAD")
        others = ("--", ".", ":!results", ":!reports")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", *others)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
