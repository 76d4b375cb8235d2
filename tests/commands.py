"""Commands in processes of their own that need not import the libraries first, which takes seconds.

One process imports them, and none of the project's own code; each command is a fork of it, and runs
in its own folder, environment and search path as one of a fresh interpreter would.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LIBRARIES = (
    "timm", "torch._dynamo", "torchvision", "transformers.models.clip.modeling_clip",
    "transformers.models.vit.modeling_vit", "pandas", "pydantic", "rich.console", "scipy.stats",
    "typer",
)  # fmt: skip
LONGEST_S = 600  # then a command is killed


class Command:
    """A command that runs.

    Its output comes through pipes, as it comes to a shell: a limit on the size of files spares it.
    """

    def __init__(self, server: Server, told: Mapping[str, Any]) -> None:
        self.server, self.arguments = server, told["arguments"]
        self.printed: dict[str, str] = {}
        self.readers = [
            threading.Thread(target=self._read, args=(Path(told["output"], name),))
            for name in ("out", "err")
        ]
        for reader in self.readers:
            reader.start()
        self.process = server.ask(told)

    def _read(self, pipe: Path) -> None:
        self.printed[pipe.name] = pipe.read_text()

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end; return its code, negative for a signal, and what it printed."""
        hung = threading.Timer(LONGEST_S, os.kill, (self.process, signal.SIGKILL))
        hung.start()
        code = self.server.ask({"wait": self.process})
        hung.cancel()
        for reader in self.readers:
            reader.join()
        out, err = self.printed["out"], self.printed["err"]
        return subprocess.CompletedProcess(self.arguments, code, out, err)


class Server:
    """The process that has the libraries, while a with-block lasts."""

    def __enter__(self) -> Server:
        self.folder = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate()  # without input it ends
        self.folder.cleanup()

    def ask(self, request: Mapping[str, Any]) -> int:
        """Return the server's answer to a request."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, f"the server of commands has ended with {self.process.wait()}"
        return int(answer)

    def start(
        self, *arguments: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> Command:
        """Start Python with these arguments: a script, -c CODE or -m MODULE, and what follows.

        Args:
            *arguments: what stands behind `python`.
            cwd: the folder it runs in; None is that of this process.
            env: its environment; None is that of this process.
        """
        output = Path(tempfile.mkdtemp(dir=self.folder.name))
        for name in ("out", "err"):
            os.mkfifo(output / name)
        told = {
            "arguments": [str(argument) for argument in arguments],
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "output": str(output),
        }
        return Command(self, told)

    def run(
        self, *arguments: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments to its end; as `start`."""
        return self.start(*arguments, cwd=cwd, env=env).wait()


def _serve() -> dict[str, Any]:
    """Fork for each request; return what was asked for, in the forks alone."""
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()  # or each fork's collections would copy all that was imported
    while line := sys.stdin.readline():
        request: dict[str, Any] = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        else:
            answer = os.fork()
        if not answer and "arguments" in request:
            return request
        print(answer, flush=True)
    sys.exit()


def _become(request: dict[str, Any]) -> None:
    """Make this process one that was started as asked, up to the first line of its code."""
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    for number, name in enumerate((os.devnull, "out", "err")):
        path = os.path.join(request["output"], name)
        opened = os.open(path, os.O_WRONLY if number else os.O_RDONLY)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    places = request["env"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [*filter(None, places), *LIBRARY_PATH]
    importlib.invalidate_caches()


def _run(arguments: list[str]) -> None:
    """Run the code as the interpreter does it, as the module `__main__`."""
    what, *rest = arguments
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    if what == "-m":
        import runpy

        sys.path.insert(0, os.getcwd())
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif what == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(what)))
        sys.argv = [what, *rest]
        main.__file__ = what
        exec(compile(Path(what).read_bytes(), what, "exec"), vars(main))


if __name__ == "__main__":
    LIBRARY_PATH = [
        place
        for place in sys.path[1:]
        if place not in os.environ.get("PYTHONPATH", "").split(os.pathsep)
    ]
    asked = _serve()
    _become(asked)
    _run(asked["arguments"])
