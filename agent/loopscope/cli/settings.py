"""``loopscope settings``: every setting, its value here and now, and where that came from."""

from __future__ import annotations

import argparse

from loopscope.settings import Explained, explain, resolve

NAME = "settings"
HELP = "Print every setting with its value, where it came from and what is allowed."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None: what holds is what the environment says."""


def run(arguments: argparse.Namespace) -> int:
    """Print the settings of this environment."""
    print("\n\n".join(map(_paragraph, explain(resolve({})))))
    return 0


def _paragraph(setting: Explained) -> str:
    origin = "default" if setting.origin == "default" else f"from {setting.origin}"
    return (
        f"{setting.name} = {setting.value or '(nothing)'}   [{origin}]\n"
        f"    {setting.help}\n"
        f"    {setting.variable}: {setting.allowed}"
    )
