"""Would the tests notice if the measuring code were wrong? Plants one fault at a time and looks.

The faults are data: the files in benchmarks/mutants/ list, by source file, a name in words, the old
text (which must stand there exactly once), the new text, and the tests that should notice.

    python benchmarks/mutants.py --only tasks/ --jobs 2
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.core.errors import BenchError

ROOT = Path(__file__).resolve().parents[1]
FAULTS = Path(__file__).with_suffix("")
NOT_COPIED = ("results/", "reports/")  # no test on the list reads them
KILLED, SURVIVED, STALE, TIMEOUT = "killed", "SURVIVED", "STALE", "TIMEOUT"
UNCLEAR = "UNCLEAR"
NOTICED, NOT_NOTICED = (KILLED, TIMEOUT), (SURVIVED, STALE, UNCLEAR)
HUNG, PASSED = None, 0
# By pytest's exit status. 2 and 4: the test files no longer import, as they did without the fault.
# Others, a crash or a process killed for want of memory, may have nothing to do with the fault.
VERDICTS = {HUNG: TIMEOUT, PASSED: SURVIVED, 1: KILLED, 2: KILLED, 4: KILLED, 5: SURVIVED}


@dataclass(frozen=True)
class Fault:
    """A mistake that a tired engineer could make, and the tests that should notice it."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def planted(self, text: str) -> str | None:
        """Return `text` with the fault in it; None where the old text is not there just once."""
        return text.replace(self.old, self.new) if text.count(self.old) == 1 else None


@dataclass(frozen=True)
class Result:
    """What became of a fault; `output` is the end of what pytest printed."""

    fault: Fault
    verdict: str
    seconds: float
    output: str = ""

    def as_dict(self) -> dict[str, object]:
        """For a program to read."""
        return {**asdict(self.fault), "verdict": self.verdict, "seconds": round(self.seconds, 1)}


def read(folder: Path) -> list[Fault]:
    """Return the faults of every file in `folder`, in order.

    Raises:
        BenchError: a file has another shape, a fault changes nothing, or two have one name.
    """
    faults = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            listed = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise BenchError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
        for file, entries in listed.items():
            for entry in entries:
                try:
                    fault = Fault(**{**entry, "file": file, "tests": tuple(entry["tests"])})
                except (KeyError, TypeError) as error:
                    raise BenchError(
                        f"{path.name}: a fault of {file} is not name, old, new, tests ({error})"
                    ) from error
                if fault.old == fault.new or not fault.tests:
                    raise BenchError(f"{path.name}: '{fault.name}' changes nothing or has no tests")
                faults.append(fault)
    twice = [name for name, n in Counter(fault.name for fault in faults).items() if n > 1]
    if twice:
        raise BenchError(f"two faults are named '{twice[0]}'")
    return faults


def select(faults: Sequence[Fault], only: str | None) -> list[Fault]:
    """Return the faults whose file or name matches `only`."""
    try:
        wanted = re.compile(only or "", re.IGNORECASE)
    except re.error as error:
        raise BenchError(f"--only '{only}' is no regular expression: {error}") from error
    chosen = [fault for fault in faults if wanted.search(f"{fault.file}: {fault.name}")]
    if not chosen:
        raise BenchError(f"no fault matches '{only}': --list shows all {len(faults)}")
    return chosen


def copy(root: Path, target: Path) -> Path:
    """Copy what git knows or does not ignore of the project, as it is in the working tree."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    for name in sorted(set(filter(None, listed.stdout.split("\0")))):
        if not name.startswith(NOT_COPIED) and (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)
    return target


def run_tests(folder: Path, tests: Sequence[str], limit: float) -> tuple[int | None, str]:
    """Run pytest on a copy; return its exit status (`HUNG` after `limit` seconds) and output."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
        # A compiled file is taken for fresh if size and second agree: a fault may change neither.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        _kill_group(process)
        return HUNG, process.communicate()[0]
    finally:
        _kill_group(process)  # a fault may leave processes that go on by themselves


def _kill_group(process: subprocess.Popen[str]) -> None:
    """End a process with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def plant(fault: Fault, folder: Path, limit: float) -> Result:
    """Apply a fault to a copy, run its tests there, and take it back."""
    start = time.monotonic()
    path = folder / fault.file
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    wrong = fault.planted(text)
    if wrong is None:
        why = f"the old text stands {text.count(fault.old)} times in {fault.file}, not once"
        return Result(fault, STALE, 0.0, why)
    if path.suffix == ".py" and not _is_python(wrong):
        return Result(fault, STALE, 0.0, f"with the new text {fault.file} is no Python")
    path.write_text(wrong, encoding="utf-8")
    try:
        status, output = run_tests(folder, fault.tests, limit)
    finally:
        path.write_text(text, encoding="utf-8")
    verdict = VERDICTS.get(status, UNCLEAR)
    return Result(fault, verdict, time.monotonic() - start, output[-2000:])


def run(
    faults: Sequence[Fault],
    folders: Sequence[Path],
    limit: float,
    tell: Callable[[Result], None],
) -> list[Result]:
    """Plant the faults, one at a time in each copy; `tell` hears of each. In the faults' order."""
    free: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for folder in folders:
        free.put(folder)

    def one(fault: Fault) -> Result:
        folder = free.get()
        try:
            return plant(fault, folder, limit)
        finally:
            free.put(folder)

    with ThreadPoolExecutor(len(folders)) as pool:
        under_way = [pool.submit(one, fault) for fault in faults]
        for done in as_completed(under_way):
            tell(done.result())
    return [done.result() for done in under_way]


def require_passing(faults: Sequence[Fault], folder: Path, limit: float) -> None:
    """Raise BenchError unless the tests pass without a fault: else their failing means nothing."""
    tests = sorted({test for fault in faults for test in fault.tests})
    # A node id beside its own file would run twice.
    tests = [test for test in tests if "::" not in test or test.partition("::")[0] not in tests]
    status, output = run_tests(folder, tests, limit * len(tests))
    if status != PASSED:
        raise BenchError(f"the tests do not pass without a fault:\n{output[-3000:]}")


def show(results: Sequence[Result], console: Console) -> None:
    """Print a line a fault, then what was not noticed, with the change and the tests."""
    for result in results:
        fault, colour = result.fault, "green" if result.verdict in NOTICED else "bold red"
        console.print(
            f"[{colour}]{result.verdict:<8}[/] {result.seconds:6.1f} s  {fault.file}: {fault.name}"
        )
    for result in (result for result in results if result.verdict in NOT_NOTICED):
        fault = result.fault
        console.print(f"\n[bold]{result.verdict}: {fault.name}[/] ({fault.file})")
        console.print(f"- {fault.old}\n+ {fault.new}\n  {' '.join(fault.tests)}", markup=False)
        if result.verdict != SURVIVED:
            console.print(f"  {result.output}", markup=False)
    counts = Counter(result.verdict for result in results)
    console.print("\n" + ", ".join(f"{counts[v]} {v}" for v in (*NOTICED, *NOT_NOTICED)))


def main(
    only: Annotated[
        str | None, typer.Option(help="faults whose 'FILE: NAME' matches this regular expression")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="copies at work at once")] = 1,
    timeout: Annotated[float, typer.Option(help="seconds for a fault's tests; a hang is seen")] = (
        300.0
    ),
    list_them: Annotated[bool, typer.Option("--list", help="print the faults, run none")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead")] = False,
    root: Annotated[Path, typer.Option(help="the project, a git checkout")] = ROOT,
    folder: Annotated[Path, typer.Option("--faults", help="folder of lists of faults")] = FAULTS,
) -> None:
    """Plant faults in copies of the project, one at a time, and see whether its tests notice.

    killed: a test failed. TIMEOUT: the tests hung, which is noticed too. SURVIVED: all tests passed
    with the fault in place, so strengthen one. STALE: the code has moved on, so mend the list.
    UNCLEAR: pytest itself broke down, which says nothing; run it again.

    The working tree is never written to. Exit status: 0 if all were noticed, else 1.
    """
    notes = Console(stderr=True)
    try:
        faults = select(read(folder), only)
        if list_them:
            if as_json:
                print(json.dumps({"faults": [asdict(fault) for fault in faults]}))
            else:
                for fault in faults:
                    print(f"{fault.file}: {fault.name}  ({' '.join(fault.tests)})")
            return
        bars = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with (
            tempfile.TemporaryDirectory(prefix="mutants-") as scratch,
            Progress(*bars, TimeElapsedColumn(), console=notes) as progress,
        ):
            task = progress.add_task("tests without a fault", total=len(faults))
            numbers = range(min(jobs, len(faults)))
            folders = [copy(root, Path(scratch) / str(number)) for number in numbers]
            require_passing(faults, folders[0], timeout)

            def tell(result: Result) -> None:
                if result.verdict in NOT_NOTICED or not notes.is_terminal:  # a log shows no bar
                    notes.print(f"{result.verdict}: {result.fault.name}", markup=False)
                progress.update(task, advance=1, description="faults")

            results = run(faults, folders, timeout, tell)
    except (BenchError, subprocess.CalledProcessError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    if as_json:
        counts = Counter(result.verdict for result in results)
        rows = [result.as_dict() for result in results]
        counted = {verdict: counts[verdict] for verdict in (*NOTICED, *NOT_NOTICED)}
        print(json.dumps({"faults": rows, "counts": counted}))
    else:
        show(results, Console(soft_wrap=True))
    if any(result.verdict in NOT_NOTICED for result in results):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
