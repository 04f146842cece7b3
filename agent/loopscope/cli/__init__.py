"""The command line: one file a command, listed here and nowhere else."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Protocol, cast

from loopscope._version import __version__
from loopscope.cli import profile, run, selftest, settings
from loopscope.settings import SettingsError


class Command(Protocol):
    """A module with a name, a sentence, its arguments and the thing it does."""

    NAME: str
    HELP: str

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None: ...

    @staticmethod
    def run(arguments: argparse.Namespace) -> int: ...


COMMANDS = (
    cast("Command", run),
    cast("Command", profile),
    cast("Command", settings),
    cast("Command", selftest),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code is returned, 2 where settings are wrong."""
    parser = argparse.ArgumentParser(prog="loopscope", description=__doc__)
    parser.description = "Runtime observability for asyncio and ASGI services."
    parser.add_argument("--version", action="version", version=f"loopscope {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in COMMANDS:
        own = commands.add_parser(command.NAME, help=command.HELP, description=command.HELP)
        command.add_arguments(own)
        own.set_defaults(run=command.run)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except SettingsError as error:
        print(f"loopscope: {error}", file=sys.stderr)
        return 2
