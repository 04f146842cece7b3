"""The stall detectors that are compared, one small adapter each, all at the same threshold.

An adapter translates and judges nothing: what a tool does not say stays None. A tool that gives a
stack accuses the deepest frame of the service's own code in it; one that prints a task or a handle
names a culprit but accuses no line. Libraries are imported when an adapter is made, so a process
loads only its own, and one that is missing is skipped with the reason.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import uvloop
from starlette.types import ASGIApp

from _stall_records import Report

THRESHOLD_S = 0.05

UNUSABLE = (ImportError, SyntaxError, RuntimeError)
"""What making an adapter raises where the tool is missing or does not run here."""

Loop = asyncio.AbstractEventLoop

_NEWEST = 100
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_PLUMBING = "_stall_worker.py"
_NOT_THE_SERVICES = ("/lib/python", "site-packages", "/agent/loopscope/", "<", _PLUMBING)


class Tool:
    """A way of detecting stalls; by itself, none at all."""

    def __init__(self) -> None:
        self._reports: list[Report] = []

    def loop_factory(self, loop: str) -> Callable[[], Loop]:
        """Where event loops come from: the named kind, unless the tool has loops of its own."""
        return uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Put the tool's middleware around the application, if it has one."""
        return app

    async def start(self) -> None:
        """Begin, on the running loop; raises one of `UNUSABLE` where the tool cannot."""

    def reports(self) -> list[Report]:
        """Everything said so far, the same id for the same event."""
        return self._reports

    def live(self) -> list[Report]:
        """The same, and what it says of a stall that lasts. Asked on another thread."""
        return self.reports()

    def url(self) -> str:
        """Where another process can ask for what `live` says; empty if nowhere."""
        return ""

    async def stop(self) -> None:
        """End; the last reports may come only now."""

    def _add(self, duration_s: float, **said: Any) -> None:
        """Keep a report of something that has ended just now, unless it says otherwise."""
        said.setdefault("start", time.perf_counter() - duration_s)
        self._reports.append(Report(str(len(self._reports)), duration_s, **said))


def accused(frames: Iterable[tuple[str, int]]) -> str | None:
    """`path:line` of the first frame that is the service's own code, innermost first."""
    for path, line in frames:
        if not any(part in path for part in _NOT_THE_SERVICES):
            return f"{path}:{line}"
    return None


class _Listener(logging.Handler):
    """Hands a logger's records on, and keeps them from being printed."""

    def __init__(self, logger: str, heard: Callable[[logging.LogRecord], None]) -> None:
        super().__init__()
        self._heard = heard
        listened = logging.getLogger(logger)
        listened.addHandler(self)
        listened.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self._heard(record)


class AsyncioDebug(Tool):
    """asyncio's debug mode, which uvloop has too: "Executing <Handle …> took 0.123 seconds"."""

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        loop.slow_callback_duration = THRESHOLD_S
        loop.set_debug(True)
        _Listener("asyncio", self._heard)

    def _heard(self, record: logging.LogRecord) -> None:
        if record.msg.startswith("Executing") and isinstance(record.args, tuple):
            handle, took = record.args
            assert isinstance(took, float)
            self._add(took, culprit=str(handle))

    async def stop(self) -> None:
        asyncio.get_running_loop().set_debug(False)


_AIOCOP_CAUSES = {
    "io_blocking": ["blocking_call", "lock"],
    "cpu_blocking": ["cpu", "gc", "import", "saturation", "gil_contention"],
}


class Aiocop(Tool):
    """aiocop as its README shows it. Its two words for a cause take in several of ours."""

    def __init__(self) -> None:
        super().__init__()
        import aiocop

        self._aiocop = aiocop

    async def start(self) -> None:
        self._aiocop.patch_audit_functions()
        self._aiocop.start_blocking_io_detection(trace_depth=20)
        self._aiocop.detect_slow_tasks(
            threshold_ms=int(THRESHOLD_S * 1000), on_slow_task=self._heard
        )
        self._aiocop.activate()

    def _heard(self, event: Any) -> None:
        if event.exceeded_threshold:
            self._add(
                event.elapsed_ms / 1000,
                location=self._location(event),
                causes=_AIOCOP_CAUSES[event.reason],
            )

    def _location(self, event: Any) -> str | None:
        """The stack seen most often; without samples, that of the gravest blocking call."""
        if event.cpu_stack_samples:
            trace = max(event.cpu_stack_samples, key=lambda sample: sample["count"])["trace"]
        elif event.blocking_events:
            gravest = max(event.blocking_events, key=lambda found: found["severity"] or 0)
            trace = gravest["trace"]
        else:
            return None
        frames = [frame.rsplit(":", 2) for frame in trace.split(" <- ")]
        # It shortens the paths of libraries, so what is still absolute is the service's.
        return accused((path, int(line)) for path, line, _ in frames if path.startswith("/"))

    async def stop(self) -> None:
        self._aiocop.deactivate()


class Aiodebug(Tool):
    """aiodebug's slow callback log."""

    def __init__(self) -> None:
        super().__init__()
        from aiodebug import log_slow_callbacks

        self._enable = log_slow_callbacks.enable

    async def start(self) -> None:
        self._enable(THRESHOLD_S, lambda name, took: self._add(took, culprit=name))


class Pyleak(Tool):
    """pyleak's `no_event_loop_blocking`, around the whole run."""

    def __init__(self) -> None:
        super().__init__()
        import pyleak
        from pyleak.utils import CallerContext

        # It reports only stacks that hold one of the caller's files: all of the service's count.
        files = {str(path) for path in Path(__file__).parent.glob("_stall_*.py")}
        self._guard: Any = pyleak.no_event_loop_blocking(
            action="log",
            threshold=THRESHOLD_S,
            check_interval=0.01,
            caller_context=CallerContext(filename=__file__, name="start", files=files),
        )

    async def start(self) -> None:
        logging.getLogger("pyleak.eventloop").disabled = True
        await self._guard.__aenter__()

    def reports(self) -> list[Report]:
        return [self._report(block) for block in list(self._guard.detector.detected_blocks)]

    def _report(self, block: Any) -> Report:
        stack = reversed(block.blocking_stack or [])
        return Report(
            id=str(block.block_id),
            duration_s=block.duration,
            start=_monotonic(block.timestamp) - block.duration,
            location=accused((frame.filename, frame.lineno or 0) for frame in stack),
        )

    async def stop(self) -> None:
        await self._guard.__aexit__(None, None, None)


class Loopguard(Tool):
    """fastapi-loopguard. It lists all requests in flight, and says itself that this names nobody.

    The multiplier keeps its calibration from lowering the threshold below everybody else's.
    """

    def __init__(self) -> None:
        super().__init__()
        import fastapi_loopguard

        self._loopguard = fastapi_loopguard
        _Listener("fastapi_loopguard", self._heard)

    def wrap(self, app: ASGIApp) -> ASGIApp:
        config = self._loopguard.LoopGuardConfig(
            fallback_threshold_ms=THRESHOLD_S * 1000,
            threshold_multiplier=1e9,
            enforcement_mode="log",
        )
        guarded: ASGIApp = self._loopguard.LoopGuardMiddleware(app, config=config)
        return guarded

    def _heard(self, record: logging.LogRecord) -> None:
        if "for %.2fms" in record.msg and isinstance(record.args, tuple):
            lag_ms = record.args[1]
            assert isinstance(lag_ms, float)
            self._add(lag_ms / 1000)


class Loopsentry(Tool):
    """loopsentry; its reports are read from the file it writes."""

    def __init__(self) -> None:
        super().__init__()
        from loopsentry import LoopSentry, monitor

        monitor.console.quiet = True
        self._directory = tempfile.TemporaryDirectory(prefix="loopsentry-")
        self._sentry = LoopSentry(base_dir=self._directory.name, threshold=THRESHOLD_S)

    async def start(self) -> None:
        self._sentry.start()

    def reports(self) -> list[Report]:
        return self._read()[0]

    def live(self) -> list[Report]:
        return [report for some in self._read() for report in some]

    def _read(self) -> tuple[list[Report], list[Report]]:
        """What the file says: stalls that ended, and one that may not have."""
        found: list[Report] = []
        begun: dict[str, Any] | None = None
        for event in map(json.loads, self._sentry.log_file.read_text().splitlines()):
            if event["type"] == "block_started":
                begun = event
            elif event["type"] == "block_resolved" and begun is not None:
                found.append(self._report(str(len(found)), begun, event["duration_current"]))
                begun = None
        if begun is None:
            return found, []
        return found, [self._report(str(len(found)), begun, begun["duration_current"])]

    def _report(self, name: str, begun: dict[str, Any], duration_s: float) -> Report:
        from datetime import datetime

        seen = datetime.fromisoformat(begun["timestamp"]).timestamp()
        frames = [match.groups() for match in map(_FRAME.search, reversed(begun["stack"])) if match]
        return Report(
            id=name,
            duration_s=duration_s,
            start=_monotonic(seen) - begun["duration_current"],
            location=accused((path, int(line)) for path, line in frames),
        )

    async def stop(self) -> None:
        self._sentry.stop()


class MonitoredIoloop(Tool):
    """monitored_ioloop: a loop that times every callback passed to call_soon."""

    def __init__(self) -> None:
        super().__init__()
        import monitored_ioloop  # noqa: F401, only to learn whether it is there

    def loop_factory(self, loop: str) -> Callable[[], Loop]:
        from monitored_ioloop import monitored_asyncio, monitored_uvloop

        factories: dict[str, Callable[[], Loop]] = {
            "asyncio": monitored_asyncio.monitored_asyncio_loop_factory(self._heard),
            "uvloop": monitored_uvloop.monitored_uvloop_loop_factory(self._heard),
        }
        return factories[loop]

    def _heard(self, state: Any) -> None:
        if state.callback_wall_time >= THRESHOLD_S:
            self._add(state.callback_wall_time, culprit=state.callback_pretty_name)


class Loopscope(Tool):
    """This project's agent as it is by default, but for the port of its listener."""

    def wrap(self, app: ASGIApp) -> ASGIApp:
        from loopscope.asgi import Loopscope as Middleware

        _Listener("loopscope", self._heard)
        return Middleware(app, listen="127.0.0.1:0")

    def _heard(self, record: logging.LogRecord) -> None:
        """Stalls are logged by the hundred; only what else there is to say goes through."""
        text = record.getMessage()
        if not text.startswith("event loop held") and record.levelno >= logging.WARNING:
            print(text, file=sys.stderr)

    def reports(self) -> list[Report]:
        from loopscope.agent import current_agent

        agent: Any = current_agent()
        stalls = [] if agent is None else agent.stalls(limit=_NEWEST)
        return [from_loopscope(stall) for stall in stalls if not stall["in_progress"]]

    def url(self) -> str:
        from loopscope.agent import current_agent

        agent: Any = current_agent()
        return f"{agent._front.url}/api/stalls"


def from_loopscope(stall: dict[str, Any]) -> Report:
    """A stall as `/api/stalls` shows it, here or to another process of this machine."""
    evidence = stall["evidence"]
    thread, cause = evidence.get("thread_name"), stall["cause"]
    # Where another thread is to blame, its line is what is accused.
    location = (evidence.get("thread_location") or stall["location"]).partition(" ")[0]
    named = [str(name) for name in (stall["route"], stall["task"], thread) if name]
    return Report(
        id=str(stall["id"]),
        duration_s=stall["duration_s"],
        start=_monotonic(stall["started_at"]),
        location=None if not location or _PLUMBING in location else location,
        culprit=" ".join(named) or None,
        causes=[cause] if cause else None,
    )


def _monotonic(unix_time: float) -> float:
    """The worker's `perf_counter` at a time of day; right to the drift since then."""
    return unix_time - time.time() + time.perf_counter()


TOOLS: dict[str, Callable[[], Tool]] = {
    "none": Tool,
    "loopscope": Loopscope,
    "aiocop": Aiocop,
    "asyncio-debug": AsyncioDebug,
    "aiodebug": Aiodebug,
    "monitored-ioloop": MonitoredIoloop,
    "pyleak": Pyleak,
    "loopguard": Loopguard,
    "loopsentry": Loopsentry,
}
"""By the name used on the command line. "none" is the floor: what the harness itself costs."""
