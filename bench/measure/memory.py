"""Peak memory of a workload, without whatever else this process has loaded.

A process never gives its peak back, so on a CPU every measurement gets a fresh one: it builds the
workload, runs it once to warm up, runs it again, and reports the high-water mark. The fresh process
is forked from a server that has imported the libraries already, which makes it cheap. On a GPU the
allocator's own peak is exact and can be reset, so that is taken in place.

    peak(functools.partial(build_workload, "timm:deit_tiny_patch16_224", batch=8)).activation_bytes
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing as mp
import os
import pickle
import re
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path

import torch

from bench.core.errors import BenchError

Workload = Callable[[], object]
Build = Callable[[], Workload]
# Imported once by the server; one that is not installed is passed over.
_PRELOAD = ("timm", "transformers.models.clip.modeling_clip", "bench.models", "bench.engine.reduce")
_M_MMAP_THRESHOLD = -3  # from malloc.h
_OUT_OF_MEMORY = re.compile(r"MemoryError|allocate memory|out of memory", re.IGNORECASE)
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


class OutOfMemory(BenchError, MemoryError):
    """The workload needs more memory than there is."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is too little memory, on a CPU or a GPU."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or bool(_OUT_OF_MEMORY.search(str(error)))


@dataclass(frozen=True)
class PeakMemory:
    """Bytes that a workload needs.

    Attributes:
        peak_bytes: high-water mark. On a CPU that of the whole process, Python and its libraries
            (some hundred MB) included; on a GPU that of PyTorch's allocator.
        weights_bytes: what is in use between two runs: weights, inputs, packed copies. On a CPU,
            what building the workload and running it once added; on a GPU, all that is allocated.
        activation_bytes: what one more run needs on top of what was in use before it.
        how: what was read, in words.
    """

    peak_bytes: int
    weights_bytes: int
    activation_bytes: int
    how: str


def peak(
    build: Build,
    *,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    timeout: float = 300.0,
) -> PeakMemory:
    """Peak memory of one warm and one measured call of the workload that `build()` returns.

    Args:
        build: makes the workload. For a CPU it must be picklable (a module-level function, or a
            `functools.partial` of one): it runs in the fresh process.
        device: "cpu", or a CUDA device.
        threads: PyTorch's intra-op threads in the fresh process; None leaves the default.
        timeout: seconds after which a fresh process that has not answered is given up.

    Raises:
        BenchError: the fresh process failed (with its reason), died or took too long;
            `OutOfMemory`, which is one, if it asked for too much.
    """
    if str(device).startswith("cuda"):
        return _cuda_peak(build, device)
    return _fresh_process(build, threads, timeout)


def _cuda_peak(build: Build, device: str | torch.device) -> PeakMemory:
    workload = build()
    with torch.inference_mode():
        workload()
        gc.collect()
        torch.cuda.synchronize(device)
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        workload()
        torch.cuda.synchronize(device)
    high = torch.cuda.max_memory_allocated(device)
    return PeakMemory(high, held, high - held, "peak of the CUDA allocator")


def _fresh_process(build: Build, threads: int | None, timeout: float) -> PeakMemory:
    context = _context()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, build, threads), daemon=True)
    try:
        process.start()
    except (pickle.PicklingError, AttributeError, TypeError) as error:  # a closure, a lambda
        raise BenchError(
            f"the workload cannot be sent to a fresh process ({error}); "
            "use a module-level function or a functools.partial of one"
        ) from error
    theirs.close()
    try:
        if not ours.poll(timeout):
            raise BenchError(f"measuring memory took longer than {timeout:g} s; raise the timeout")
        answer = ours.recv()
    except EOFError:
        process.join(5)
        raise _death(process.exitcode) from None
    finally:
        process.kill()
        process.join()
        ours.close()
    if isinstance(answer, str):
        kind = OutOfMemory if _OUT_OF_MEMORY.search(answer) else BenchError
        raise kind(f"measuring memory in a fresh process failed: {answer}")
    return PeakMemory(*answer)


def _context() -> ForkServerContext | SpawnContext:
    if sys.platform != "linux":
        return mp.get_context("spawn")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOAD))
    return context


def _death(code: int | None) -> BenchError:
    what = "the process that measures memory died"
    if code == -signal.SIGKILL:
        return OutOfMemory(f"{what} (killed, probably for want of memory): use a smaller batch")
    return BenchError(f"{what} (exit code {code}); its own words are on stderr")


def _child(answer: Connection, build: Build, threads: int | None) -> None:
    """Run in the fresh process: answer with the fields of `PeakMemory`, or with the reason."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        _return_freed_blocks()
        empty = _private()
        workload = build()
        with torch.inference_mode():
            workload()  # what is set up once, at the first call, is not an activation
            _give_back()
            weights, before, how = _private() - empty, _resident(), _reset_peak()
            workload()
        high = _high_water()
        answer.send((high, max(0, weights), max(0, high - before), how))
    except BaseException as error:  # the parent must hear of it, whatever it is
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        answer.send(" ".join(f"{type(error).__name__}: {error} ({where})".split()))
    finally:
        answer.close()


def _end_with_parent() -> None:
    """End this process once the one that wants its answer is dead."""
    parent = mp.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _return_freed_blocks() -> None:
    """Have glibc hand every large freed block back at once, so that the peak is what is in use.

    By default it keeps them, fragmented: half as much again for a small ViT, and never twice the
    same, which would drown what a reduction saves.
    """
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 16)


def _give_back() -> None:
    """Hand freed memory back to the system, so that it is neither weights nor hides activations."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)


def _status_bytes(key: str) -> int | None:
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return None


def _high_water() -> int:
    mark = _status_bytes("VmHWM")
    if mark is not None:
        return mark
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _resident() -> int:
    size = _status_bytes("VmRSS")
    return _high_water() if size is None else size


def _private() -> int:
    """Resident bytes without file-backed pages, which grow as library code is first used."""
    size = _status_bytes("RssAnon")
    return _resident() if size is None else size


def _reset_peak() -> str:
    """Forget the peak that building left (a checkpoint read twice, say), where Linux lets us."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return "peak resident memory of a fresh process, building the model included"
    return "VmHWM of a fresh process, reset after building the model"
