"""The command line. Nothing heavy is imported before a command needs it: `--help` is instant."""

from __future__ import annotations

import errno
import signal
import sys
from pathlib import Path
from typing import NoReturn

import typer

from bench.cli import develop, leaderboard, look_up, report, run, train
from bench.cli.options import DEFAULT_SUITE, INTERRUPTED
from bench.core.errors import BenchError, printable

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Measure what token reduction costs and saves: accuracy, MACs, time and memory.\n\n"
    "Without a command: the suite 'quick' (under ten minutes on two cores) and its report.\n\n"
    "\b\nExamples:\n"
    "  run_bench.py                                    the default suite and its report\n"
    "  run_bench.py run --suite standard               a finer sweep\n"
    "  run_bench.py run --model timm:deit_small_patch16_224 --random-weights \\\n"
    "               --method tome --r 13               what one method costs on one model\n"
    "  run_bench.py list methods                       what there is to compare\n"
    "  run_bench.py report                             rebuild the report from the records\n"
    "  run_bench.py compare HEAD~1 results             what a change made better or worse\n"
    "  run_bench.py leaderboard results                who is best, from contributed records\n"
    "  run_bench.py cost llava-1.5-7b-hf --method divprune   from its shape, in seconds\n"
    "  run_bench.py estimate llava-1.5-7b-hf --on h100,l4   how long it might take there\n"
    "  run_bench.py verify                             recompute the costs that papers print\n",
)


@app.callback(invoke_without_command=True)
def default(context: typer.Context) -> None:
    """Run the default suite and write its report when no command is given."""
    if context.invoked_subcommand is None:
        code = run.run_suite({"suite": DEFAULT_SUITE}, Path("results"), Path("reports/quick"))
        raise typer.Exit(code)


app.command()(run.run)
app.command()(run.merge)
app.command()(report.report)
app.command()(report.compare)
app.command()(report.tokens)
app.command()(leaderboard.leaderboard)
app.command()(leaderboard.recheck)
app.command("list")(look_up.list_)
app.command()(look_up.submit)
app.command()(look_up.cost)
app.command()(look_up.estimate)
app.command()(look_up.verify)
app.command()(develop.check)
app.command()(develop.new)
app.command()(train.train)


def main() -> NoReturn:
    """Run the command line and leave; SIGTERM ends it as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(outcome(app, Path(sys.argv[0]).name))
    finally:
        signal.signal(signal.SIGTERM, before)


def outcome(commands: typer.Typer, name: str) -> int:
    """Run a program's commands; return its exit code. A user's mistake is one line and code 2."""
    try:
        code = commands(prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except BenchError as error:
        return _mistake(str(error))
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return 1
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        where = error.filename or "to the output"
        return _mistake(f"cannot write {where} ({error.strerror}): make room")
    except Exception as error:
        wording = getattr(error, "format_message", None)  # a mistake in the options themselves
        if wording is None:
            raise
        return _mistake(f"{wording()} (see --help)")
    return code if isinstance(code, int) else 0


def _mistake(message: str) -> int:
    print(f"error: {printable(message)}", file=sys.stderr)
    return 2
