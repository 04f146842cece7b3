"""``loopscope run -- command``: measure a service without touching its source.

The command takes this process' place, so its process id, signals, exit code and terminal are what
they would have been. All that it is given is a directory at the head of ``PYTHONPATH``, whose
``sitecustomize`` (``_site``) runs in every Python below and puts the middleware around what
uvicorn, gunicorn, hypercorn and granian serve; and a sentinel, unless ``LOOPSCOPE_SENTINEL`` says
otherwise. Settings are ``LOOPSCOPE_*`` variables; where those switch measuring off, the command is
run as it is.

A Python that ignores its environment (``-I``, ``-E``) or ``site`` (``-S``) cannot be reached.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from loopscope.settings import resolve

NAME = "run"
HELP = (
    "Run a service and measure it, without a change to its source: "
    "loopscope run -- uvicorn app:app --workers 2"
)

NO_COMMAND = 2
CANNOT_RUN = 126
NOT_FOUND = 127
"""Exit codes, as shells have them."""

_SITE = str(Path(__file__).with_name("_site"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command, and whatever follows it."""
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="-- command", help="what starts the service"
    )


def run(arguments: argparse.Namespace) -> int:
    """Become the command; returns only if that cannot be. Raises ``SettingsError``."""
    command: list[str] = arguments.command
    if command[:1] == ["--"]:
        command = command[1:]
    if not command or command[0].startswith("-"):
        return _sorry("run needs a command: loopscope run -- uvicorn app:app", NO_COMMAND)
    environ = dict(os.environ)
    if resolve({}).enabled:
        environ["PYTHONPATH"] = _path_with_site(environ)
        environ.setdefault("LOOPSCOPE_SENTINEL", "1")
        if _is_out_of_reach(command):
            _sorry("python -I, -E and -S run nothing of ours: the service is not measured", 0)
    _as_at_our_start()
    try:
        os.execvpe(command[0], command, environ)  # noqa: S606 - that is what it is for
    except (FileNotFoundError, NotADirectoryError):
        return _sorry(f"{command[0]}: command not found", NOT_FOUND)
    except (OSError, ValueError) as error:
        return _sorry(f"{command[0]}: {getattr(error, 'strerror', error)}", CANNOT_RUN)


def _path_with_site(environ: Mapping[str, str]) -> str:
    """``PYTHONPATH`` with ours at its head, once. An empty part would be the working directory."""
    path = environ.get("PYTHONPATH", "")
    rest = [each for each in path.split(os.pathsep) if each != _SITE] if path else []
    return os.pathsep.join([_SITE, *rest])


def _is_out_of_reach(command: Sequence[str]) -> bool:
    """Whether ``command`` is a Python told to ignore its environment or ``site``."""
    if not Path(command[0]).name.startswith("python"):
        return False
    for option in command[1:]:
        if not option.startswith("-") or option[1:2] in {"", "c", "m"}:
            return False
        if option[1] not in "-WX" and set(option) & set("IES"):
            return True
    return False


def _as_at_our_start() -> None:
    """Undo what Python has done to signals: what is ignored stays so in the command."""
    for name in ("SIGPIPE", "SIGXFSZ"):
        with suppress(AttributeError):  # no such signal here
            signal.signal(getattr(signal, name), signal.SIG_DFL)


def _sorry(message: str, code: int) -> int:
    print(f"loopscope: {message}", file=sys.stderr, flush=True)
    return code
