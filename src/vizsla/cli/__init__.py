"""What a person types. One file a command; errors become exit codes here and nowhere else.

Exit codes: 0 done, 1 the work failed, 2 wrong usage or input, 128 + n stopped by signal n. A
user's mistake prints one message and no traceback.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from cyclopts import App, CycloptsError

from vizsla import phases
from vizsla.errors import InputError, Interrupted, VizslaError
from vizsla.version import __version__

app = App(
    name="vizsla",
    help="From a folder of labelled pictures to a classifier that answers.",
    version=__version__,
    help_flags=["--help", "-h"],
)
_COMMANDS = {
    "train": ("vizsla.cli.train:train", "Train a classifier on pictures and write its bundle."),
    "tune": ("vizsla.cli.tune:app", "Search for the best settings, by many trainings."),
    "debug": ("vizsla.cli.debug:debug", "Judge what a run's debugger captured, and show it."),
    "profile": ("vizsla.cli.profile:profile", "Tell where the time of a run or a command went."),
    "report": ("vizsla.cli.report:report", "Write the report of a run or a study."),
    "evaluate": ("vizsla.cli.evaluate:evaluate", "Evaluate a run or a bundle on pictures."),
    "predict": ("vizsla.cli.predict:predict", "Predict the class of pictures."),
    "export": ("vizsla.cli.export:export", "Make a bundle smaller, or for another runtime."),
    "serve": ("vizsla.cli.serve:serve", "Answer for pictures over HTTP, with a page to try it."),
    "demo": ("vizsla.cli.demo:demo", "Train on drawn pictures, to see that all works."),
    "runs": ("vizsla.cli.runs:app", "List and compare runs."),
    "job": ("vizsla.cli.job:job", "Do what a job file says."),
    "cache": ("vizsla.cli.cache:app", "See and clear what is kept to be used again."),
}
# By name, so that a command's imports wait until it is called.
for _name, (_home, _help) in _COMMANDS.items():
    app.command(_home, name=_name, help=_help)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    phases.is_command = True
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str], command: App = app) -> int:
    """Run one command and return its exit code; what went wrong is on standard error."""
    try:
        code = command(
            _with_divider(arguments), exit_on_error=False, print_error=False,
            result_action="return_value",
        )  # fmt: skip
    except CycloptsError as error:
        return _complain(_rephrased(error), 2)
    except Interrupted as error:
        return _complain(str(error), 128 + error.signal_number)
    except KeyboardInterrupt:
        return _complain("Stopped.", 130)
    except InputError as error:
        return _complain(str(error), 2)
    except VizslaError as error:
        return _complain(str(error), 1)
    except BrokenPipeError:  # the reader of our output, such as head, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a folder or file that the system refuses
        return _complain(f"{error.filename or 'A file'}: {error.strerror or error}.", 2)
    return code if isinstance(code, int) else 0


def _with_divider(arguments: list[str]) -> list[str]:
    """The parser takes `--` away, by which `vizsla profile -- COMMAND` is told from `vizsla profile
    RUN`: a second one stays. What follows it is never read as flags of ours."""
    if arguments[:1] != ["profile"] or "--" not in arguments:
        return arguments
    at = arguments.index("--")
    return [*arguments[:at], "--", *arguments[at:]]


def _rephrased(error: CycloptsError) -> str:
    """The message, without pydantic's wrapping where one of our settings was refused."""
    cause: Any = error.__cause__ or error.__context__
    if hasattr(cause, "errors"):
        refused = [entry.get("ctx", {}).get("error") for entry in cause.errors()]
        if refused and all(isinstance(one, InputError) for one in refused):
            return " ".join(map(str, refused))
    return " ".join(str(error).split())


def _complain(message: str, code: int) -> int:
    print(f"vizsla: {message}", file=sys.stderr)
    return code
