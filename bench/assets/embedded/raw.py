"""What the embedded models were trained on, fetched once from package registries into a cache.

Fashion-MNIST comes from the Debian package ``dataset-fashion-mnist``; `drawings` has the emoji. The
cache is ``$CROSSGET_BENCH_CACHE``, else ``~/.cache/crossget-bench``.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.core.errors import BenchError

ByteArray = NDArray[np.uint8]

# Fixed, so that the committed sets and the training data stay what the cards say.
NPM_VERSIONS = {
    "@iconify-json/emojione": "1.2.3",
    "@iconify-json/fluent-emoji": "1.2.7",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/noto-v1": "1.2.5",
    "@iconify-json/openmoji": "1.2.29",
    "@iconify-json/twemoji": "1.2.5",
    "emojibase-data": "17.0.0",
}


class DataError(BenchError):
    """Training data could not be had; the message names the fix."""


def cache_dir(data_dir: str | Path | None = None) -> Path:
    """Return the cache folder, made if missing."""
    default = os.environ.get("CROSSGET_BENCH_CACHE") or Path.home() / ".cache" / "crossget-bench"
    folder = Path(data_dir or default).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _client(command: list[str], cwd: Path, fix: str) -> None:
    """Run a registry's own client; a missing or failing one is a DataError that names the fix."""
    if shutil.which(command[0]) is None:
        raise DataError(f"'{command[0]}' is not installed: {fix}")
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise DataError(f"'{' '.join(command)}' failed ({last}): {fix}")


@contextlib.contextmanager
def _unpacking(target: Path) -> Iterator[Path]:
    """Yield an empty folder; what is in its `package` afterwards becomes `target`."""
    work = target.with_name(f".{target.name}.{os.getpid()}")
    work.mkdir(parents=True, exist_ok=True)
    yield work
    try:
        (work / "package").rename(target)
    except OSError:  # another process was faster
        if not target.exists():
            raise
    shutil.rmtree(work)


def fetch_debian(package: str, cache: Path) -> Path:
    """Download and unpack a Debian package; return the folder that holds its file tree."""
    target = cache / "debian" / package
    if not target.exists():
        fix = f"on Debian or Ubuntu run 'apt-get update', or unpack {package} into {target} by hand"
        with _unpacking(target) as work:
            _client(["apt-get", "download", package], work, fix)
            _client(["dpkg", "-x", str(next(work.glob("*.deb"))), str(work / "package")], work, fix)
    return target


def fetch_npm(package: str, cache: Path) -> Path:
    """Download and unpack an npm package with ``npm pack``; return its folder."""
    target = cache / "npm" / package.replace("/", "+")
    if not target.exists():
        fix = f"install Node's npm, or unpack the package {package} into {target} by hand"
        with _unpacking(target) as work:
            versioned = f"{package}@{NPM_VERSIONS[package]}"
            _client(["npm", "pack", "--silent", versioned], work, fix)
            with tarfile.open(next(work.glob("*.tgz"))) as tar:
                tar.extractall(work, filter="data")
    return target


def fashion(split: str, data_dir: str | Path | None = None) -> tuple[ByteArray, NDArray[np.int64]]:
    """Return Fashion-MNIST images (N,28,28) uint8 and labels (N,); split is 'train' or 't10k'."""
    tree = fetch_debian("dataset-fashion-mnist", cache_dir(data_dir))
    folder = tree / "usr" / "share" / "datasets" / "fashion-mnist"
    with gzip.open(folder / f"{split}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / f"{split}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    return images, labels
