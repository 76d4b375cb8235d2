"""Which machine this is, for records and for the results folder's name.

Nothing that names a person or a host is read.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "timm", "numpy")


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
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def free_memory(device: str) -> int:
    """Return the bytes that a model could take now."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    info = Path("/proc/meminfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
        "gpu": gpu_name() if device == "cuda" else None,
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "threads": threads,
        "git": git_state(),
    }


@functools.cache
def git_state() -> str | None:
    """Return the commit of this project's checkout, `+` behind it where files differ from it."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "--short", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
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
