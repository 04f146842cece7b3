"""``loopscope profile``: what a Python process does in the next seconds, as a file.

Either of a process on this machine, whether it has an agent or not, or by asking an agent for it
over HTTP, who then needs no more rights than the service has. Exit code 0 where there is a profile,
1 where there is none, 2 where the question was wrong; why is one sentence on stderr.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from loopscope.sentinel.pyspy import FORMATS, MOST_SECONDS, SUFFIXES, PySpyError, record
from loopscope.settings import resolve

NAME = "profile"
HELP = "Record what a Python process does in the next seconds, without stopping it."

_FAILED = 1
_WRONG = 2
_INTERRUPTED = 130
_BAD_REQUEST = 400

_USUAL = "127.0.0.1:9464"
_LEEWAY = 30.0
"""Seconds that an agent may take on top of those that it records for."""
_MOST = 64 * 1024 * 1024
_MOST_SENTENCE = 2000


class _RefusedError(Exception):
    """There is no profile. ``code``: the exit code."""

    def __init__(self, why: object, code: int = _FAILED) -> None:
        super().__init__(why)
        self.code = code


class _NoRedirect(HTTPRedirectHandler):
    """The token is for whom it was given to."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whom to ask or look into, for how long, and what to make of it."""
    whom = parser.add_mutually_exclusive_group()
    whom.add_argument("--pid", type=int, help="a process on this machine")
    whom.add_argument(
        "--url", help=f"an agent's admin listener; default: LOOPSCOPE_LISTEN, or http://{_USUAL}"
    )
    parser.add_argument("--worker", type=int, help="with --url: which of its workers")
    parser.add_argument(
        "--seconds", type=_seconds, default=5, help=f"1 to {MOST_SECONDS:.0f}; default: 5"
    )
    parser.add_argument(
        "--format", choices=FORMATS, default=FORMATS[0], help="default: %(default)s"
    )
    parser.add_argument("--gil", action="store_true", help="only the thread that holds the GIL")
    parser.add_argument("--idle", action="store_true", help="threads that wait as well")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="- is stdout; default: profile.svg and the like"
    )
    parser.add_argument(
        "--token", help="with --url; default: LOOPSCOPE_TOKEN, which others cannot read off ps"
    )


def run(arguments: argparse.Namespace) -> int:
    """Record it and write it down. Raises ``SettingsError``."""
    output = arguments.output or f"profile.{SUFFIXES[arguments.format]}"
    try:
        if arguments.pid is not None and arguments.worker is not None:
            raise _RefusedError("--worker is for --url; --pid names its process itself", _WRONG)
        _see_whether_writable(output)
        recorder = _asked if arguments.pid is None else _looked
        _write(output, recorder(arguments), arguments.seconds)
    except _RefusedError as error:
        print(f"loopscope: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0


def _looked(arguments: argparse.Namespace) -> bytes:
    """A profile that we take ourselves. Raises ``_RefusedError``."""
    _say_how_long(arguments, f"process {arguments.pid}")
    try:
        return record(
            arguments.pid,
            arguments.seconds,
            format=arguments.format,
            gil=arguments.gil,
            idle=arguments.idle,
        )
    except PySpyError as error:
        raise _RefusedError(error) from error


def _asked(arguments: argparse.Namespace) -> bytes:
    """A profile that an agent takes for us. Raises ``_RefusedError`` or ``SettingsError``."""
    base = (arguments.url or _own_url()).rstrip("/")
    if urlsplit(base).scheme not in ("http", "https"):
        raise _RefusedError(f"{base} is no address; it looks like http://{_USUAL}", _WRONG)
    query = {
        "seconds": arguments.seconds,
        "format": arguments.format,
        "gil": int(arguments.gil),
        "idle": int(arguments.idle),
    }
    if arguments.worker is not None:
        query["worker"] = arguments.worker
    token = arguments.token or resolve({}).token
    headers = {"authorization": f"Bearer {token}"} if token else {}
    request = Request(f"{base}/api/profile?{urlencode(query)}", headers=headers)  # noqa: S310 - see above
    _say_how_long(arguments, base)
    return _answer(request, base, arguments.seconds + _LEEWAY)


def _answer(request: Request, base: str, timeout: float) -> bytes:
    """The body of the answer. Raises ``_RefusedError`` with the words of whoever refused."""
    # Agents are on loopback or close by: no proxy is between them and us.
    opener = build_opener(ProxyHandler({}), _NoRedirect)
    try:
        with opener.open(request, timeout=timeout) as response:
            body: bytes = response.read(_MOST + 1)
    except HTTPError as error:
        with error:
            said = _printable(error.read(_MOST_SENTENCE)) or error.reason
        code = _WRONG if error.code == _BAD_REQUEST else _FAILED
        raise _RefusedError(f"{base} answers {error.code}: {said}", code) from error
    except URLError as error:
        why = getattr(error.reason, "strerror", None) or error.reason
        raise _RefusedError(f"{base} cannot be reached: {why}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise _RefusedError(f"{base} gives no answer: {error}") from error
    if len(body) > _MOST:
        raise _RefusedError(f"{base} sends more than {_MOST} bytes")
    return body


def _own_url() -> str:
    """Where an agent with the settings of this environment listens. Raises ``SettingsError``."""
    address = resolve({}).listen_address
    if address is None:
        return f"http://{_USUAL}"
    host, port = address
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _see_whether_writable(output: str) -> None:
    """Before anybody waits for it. Raises ``_RefusedError``."""
    path = Path(output)
    if output == "-":
        return
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise _RefusedError(f"{output} cannot be written; name another file with -o", _WRONG)


def _write(output: str, profile: bytes, seconds: int) -> None:
    """To the file, whose name is then the last word, or to stdout. Raises ``_RefusedError``."""
    try:
        if output == "-":
            sys.stdout.buffer.write(profile)
            sys.stdout.buffer.flush()
            return
        Path(output).write_bytes(profile)
    except OSError as error:
        raise _RefusedError(f"{output} cannot be written: {error.strerror}") from error
    print(f"{seconds} s are in {output}")


def _say_how_long(arguments: argparse.Namespace, whom: str) -> None:
    """To whoever sits there and waits."""
    if sys.stderr.isatty():
        print(f"Recording {whom} for {arguments.seconds} s.", file=sys.stderr)


def _printable(said: bytes) -> str:
    """The first line of what a server says: nothing in it steers a terminal."""
    first = said.decode(errors="replace").strip().partition("\n")[0]
    return "".join(filter(str.isprintable, first))


def _seconds(text: str) -> int:
    number = int(text)
    if not 1 <= number <= math.floor(MOST_SECONDS):
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to {MOST_SECONDS:.0f}")
    return number
