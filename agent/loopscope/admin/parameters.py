"""Query parameters of the JSON API: what is not understood is said, never guessed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class BadParameterError(ValueError):
    """A parameter with a value that is not allowed; the message names all three."""


def choice(parameters: Mapping[str, str], name: str, choices: Sequence[str]) -> str:
    """One of ``choices``, the first unless given."""
    value = parameters.get(name, choices[0])
    if value not in choices:
        allowed = ", ".join(each for each in choices if each)
        raise BadParameterError(f"{name} is {value!r}; allowed: {allowed}")
    return value


def whole(parameters: Mapping[str, str], name: str, *, default: int, most: int) -> int:
    """A whole number from 1 to ``most``, ``default`` unless given."""
    value = parameters.get(name)
    if value is None:
        return default
    if not (value.isascii() and value.isdigit() and 1 <= int(value[:10]) <= most):
        raise BadParameterError(f"{name} is {value!r}; allowed: whole numbers from 1 to {most}")
    return int(value)
