"""Settings: one frozen object, resolved once, that can explain itself.

Keyword arguments win over ``LOOPSCOPE_*`` variables, which win over defaults. Whatever is wrong is
a ``SettingsError`` that names the setting, the value and what is allowed. As OpenTelemetry has it,
a variable that is empty is not set.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import inf
from pathlib import Path
from typing import Any, TypedDict, cast

from loopscope.core.running import running_loop

logger = logging.getLogger("loopscope")

PREFIX = "LOOPSCOPE_"
_SERVICE_LINK = re.compile(
    r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
"""What Kubernetes adds to the prefix for every pod beside a Service called loopscope, or
loopscope-something: nobody has written that down as a setting."""

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


class SettingsError(ValueError):
    """A setting that is unknown or has a value that is not allowed."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one setting is read: what is allowed, in words, and how a value becomes the real thing.

    ``parse`` takes the text of a variable or whatever a keyword was given, and raises ValueError or
    TypeError for what is not allowed.
    """

    allowed: str
    parse: Callable[[Any], Any]


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = _text(value).lower()
    if text not in _TRUE + _FALSE:
        raise ValueError
    return text in _TRUE


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value.strip()


def _listen(value: Any) -> str:
    text = _text(value)
    if text.lower() == "off":
        return "off"
    _address(text)
    return text


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError
    return host, int(port)


def _whole(least: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise TypeError
        number = int(value)
        if number < least:
            raise ValueError
        return number

    return parse


def _seconds(least: float) -> Callable[[Any], float]:
    def parse(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise TypeError
        number = float(value)
        if not least <= number < inf:
            raise ValueError
        return number

    return parse


def _list(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if not isinstance(value, list | tuple):
        raise TypeError
    return tuple(map(_text, cast("Sequence[Any]", value)))


def _patterns(value: Any) -> tuple[str, ...]:
    patterns = _list(value)
    for pattern in patterns:
        re.compile(pattern)
    return patterns


def _directory(value: Any) -> Path | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str | Path):
        raise TypeError
    return Path(value)


def _choice(*choices: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        text = _text(value).lower()
        if text not in choices:
            raise ValueError
        return text

    return parse


_BOOLEAN = _Kind("true or false (1, yes, on; 0, no, off)", _boolean)


def _setting(default: Any, kind: _Kind, help_text: str, env: str = "") -> Any:
    return field(default=default, metadata={"kind": kind, "help": help_text, "env": env})


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings. ``resolve`` makes one; ``origins`` says where each value came from."""

    enabled: bool = _setting(True, _BOOLEAN, "Whether to measure anything at all.")
    listen: str = _setting(
        "127.0.0.1:9464",
        _Kind("host:port, [::1]:port or off; port 0 is any free port", _listen),
        "Where the admin listener serves /metrics and the JSON API.",
    )
    token: str = _setting(
        "",
        _Kind("any text", _text),
        "Bearer token for everything but /metrics and /healthz; needed off loopback.",
    )
    directory: Path | None = _setting(
        None,
        _Kind("a directory this process may write to", _directory),
        "Keep figures in files here, readable by other processes and after a crash; the workers "
        "of one application share it. Unset: found by themselves.",
        env="LOOPSCOPE_DIR",
    )
    share: bool = _setting(
        True,
        _BOOLEAN,
        "Whether workers with one parent and one listening socket share figures by themselves.",
    )
    sentinel: bool = _setting(
        False,
        _BOOLEAN,
        "Whether a process beside the workers serves their figures, and looks into those that hang "
        "from outside.",
    )
    exclude: tuple[str, ...] = _setting(
        (),
        _Kind("regular expressions, separated by commas", _patterns),
        "Paths not to measure: what one of these is found in.",
    )
    max_series: int = _setting(
        2000,
        _Kind("a whole number, 10 or more", _whole(10)),
        "Label sets of requests before new ones are folded into _OVERFLOW.",
    )
    request_start: bool = _setting(
        False, _BOOLEAN, "Publish how long requests had waited by a proxy's X-Request-Start."
    )
    stream_content_types: tuple[str, ...] = _setting(
        ("text/event-stream", "multipart/x-mixed-replace", "application/x-ndjson"),
        _Kind("content types, separated by commas", _list),
        "Streamed responses of these types stay out of HTTP latency.",
    )
    user_metrics: bool = _setting(
        True, _BOOLEAN, "Publish the service's own prometheus_client metrics as well."
    )
    stalls: bool = _setting(
        True, _BOOLEAN, "Watch the event loop: its delay, its utilisation and what blocks it."
    )
    stall_threshold: float = _setting(
        0.05,
        _Kind("seconds, 0.01 or more", _seconds(0.01)),
        "From how many seconds a hold of the event loop counts as a stall.",
    )
    await_threshold: float = _setting(
        0.001,
        _Kind("seconds, 0.0001 or more", _seconds(0.0001)),
        "From how many seconds on a wait of a request is looked at: which line, for what.",
    )
    sequential_threshold: float = _setting(
        0.005,
        _Kind("seconds, 0.001 or more", _seconds(0.001)),
        "From how many seconds on waits that always follow each other count as a sequence.",
    )
    stuck_after: float = _setting(
        30.0,
        _Kind("seconds, 0.1 or more", _seconds(0.1)),
        "From what age in seconds on a request in flight is listed as stuck.",
    )
    leak_after: float = _setting(
        60.0,
        _Kind("seconds, 0.1 or more", _seconds(0.1)),
        "From how many seconds on what is taken from a pool and not given back counts as a leak.",
    )
    code_roots: tuple[str, ...] = _setting(
        (),
        _Kind("directories, separated by commas", _list),
        "Where your code is; empty for all that is neither installed nor the standard library.",
    )
    traces: str = _setting(
        "auto",
        _Kind("auto or off", _choice("auto", "off")),
        "Make spans where an OpenTelemetry provider or OTEL_* endpoint is configured, or never.",
    )
    service: str = _setting(
        "", _Kind("any text", _text), "service.name of spans; empty leaves it to OTEL_SERVICE_NAME."
    )
    origins: Mapping[str, str] = field(default_factory=dict[str, str], compare=False, repr=False)

    @property
    def listen_address(self) -> tuple[str, int] | None:
        """Host and port to listen on; None for nowhere."""
        return None if self.listen == "off" else _address(self.listen)

    @property
    def exclude_pattern(self) -> re.Pattern[str] | None:
        """One pattern that finds every excluded path; None where none is."""
        if not self.exclude:
            return None
        return re.compile("|".join(f"(?:{pattern})" for pattern in self.exclude))


class SettingsKeywords(TypedDict, total=False):
    """Keyword arguments, for type checkers; ``Settings`` says what they mean."""

    enabled: bool
    listen: str
    token: str
    directory: Path | str | None
    share: bool
    sentinel: bool
    exclude: Sequence[str]
    max_series: int
    request_start: bool
    stream_content_types: Sequence[str]
    user_metrics: bool
    stalls: bool
    stall_threshold: float
    await_threshold: float
    sequential_threshold: float
    stuck_after: float
    leak_after: float
    code_roots: Sequence[str]
    traces: str
    service: str


@dataclass(frozen=True, slots=True)
class Explained:
    """One setting in words, for people."""

    name: str
    variable: str
    value: str
    origin: str
    help: str
    allowed: str


_FIELDS = {each.name: each for each in fields(Settings) if each.name != "origins"}
_VARIABLES = {
    each.metadata["env"] or f"{PREFIX}{name.upper()}": name for name, each in _FIELDS.items()
}


def resolve(keywords: Mapping[str, object], environ: Mapping[str, str] | None = None) -> Settings:
    """The settings that ``keywords`` and ``environ`` (the process' unless given) amount to.

    Raises ``SettingsError``.
    """
    values: dict[str, Any] = {}
    origins = dict.fromkeys(_FIELDS, "default")
    for variable, text in _ours(os.environ if environ is None else environ):
        name = _VARIABLES.get(variable)
        if name is None:
            raise _unknown("environment variable", variable, _VARIABLES)
        values[name] = _parsed(name, variable, text)
        origins[name] = variable
    for name, value in keywords.items():
        if name not in _FIELDS:
            raise _unknown("setting", name, _FIELDS)
        values[name] = _parsed(name, name, value)
        origins[name] = "keyword"
    return Settings(**values, origins=origins)


def resolve_for_service(keywords: Mapping[str, object]) -> Settings:
    """The same for a service, which a wrong variable ends at its start or not at all.

    While a service is still being put together it raises ``SettingsError``. On a running event loop
    it logs that and has nothing measured: frameworks make their middleware when they are first
    called, and each request would end with the error, in the one place where nobody tried these
    variables before. ``keywords`` are as wrong everywhere, so that is always raised.
    """
    resolve(keywords, {})
    try:
        return resolve(keywords)
    except SettingsError as error:
        if running_loop() is None:
            raise
        logger.error("loopscope: nothing is measured: %s", error)
        return resolve({**keywords, "enabled": False}, {})


def explain(settings: Settings) -> list[Explained]:
    """Every setting with its value and where that came from, in order of declaration."""
    variables = {name: variable for variable, name in _VARIABLES.items()}
    return [
        Explained(
            name=name,
            variable=variables[name],
            value=_shown(name, getattr(settings, name)),
            origin=settings.origins.get(name, "default"),
            help=each.metadata["help"],
            allowed=each.metadata["kind"].allowed,
        )
        for name, each in _FIELDS.items()
    ]


def _ours(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The variables that are meant for us, and are set."""
    for variable, text in environ.items():
        if variable.startswith(PREFIX) and text:
            rest = variable.removeprefix(PREFIX)
            if variable in _VARIABLES or not _SERVICE_LINK.fullmatch(rest):
                yield variable, text


def _parsed(name: str, called: str, value: object) -> Any:
    kind: _Kind = _FIELDS[name].metadata["kind"]
    try:
        return kind.parse(value)
    except re.error as error:
        raise SettingsError(
            f"{called}: {error.pattern!r} is no regular expression ({error}); "
            f"allowed: {kind.allowed}"
        ) from error
    except (TypeError, ValueError) as error:
        given = "(hidden)" if name == "token" else repr(value)
        raise SettingsError(f"{called} is {given}; allowed: {kind.allowed}") from error


def _unknown(what: str, name: str, known: Mapping[str, object]) -> SettingsError:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}"
    return SettingsError(f"unknown {what} {name}; {hint}")


def _shown(name: str, value: object) -> str:
    if name == "token":
        return "(set)" if value else ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(cast("tuple[str, ...]", value))
    return "" if value is None else str(value)
