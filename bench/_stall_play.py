"""Has the stalls played by worker processes, and writes down what they say."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict

from _pipe import Message, Worker, WorkerError
from _stall_journal import Journal
from _stall_plan import Stall
from _stall_records import Answer
from _stall_tools import from_loopscope
from _stall_worker import Orders
from _table import console

_START_BOUND_S = 300.0
_BOUND_S = 30.0
_ASK_SECONDS = 0.1
_ANSWER_SECONDS = 1.0

Pair = tuple[str, str]
"""A tool and a kind of loop."""


class Player:
    """Plays to one tool after the other; a worker that hangs or dies costs its own results only."""

    def __init__(self, journal: Journal, settle_s: float) -> None:
        self._journal = journal
        self._settle_s = settle_s
        self._sizes: dict[str, int] = {}

    def measure(
        self,
        pair: Pair,
        plan: Sequence[Stall],
        holds: Sequence[tuple[str, float]],
        controls: Sequence[tuple[str, float]],
    ) -> None:
        """Play stalls, holds and controls to one tool on one loop. Times are seconds."""
        blocks = sorted({(stall.kind, stall.wanted_s) for stall in plan} | set(holds))
        with self._worker(pair, blocks, len(plan)) as session:
            if session is None:
                return
            for stall in plan:
                if stall.kind in session.kinds:
                    session.play(stall)
            for kind, seconds in holds:
                session.hold(kind, seconds)
            for name, seconds in controls:
                session.control(name, seconds)
            session.finish()

    def keep_quiet(self, pairs: Sequence[Pair], seconds: float) -> None:
        """Leave all tools alone at the same time, each in a process in which nothing happens."""
        with ExitStack() as stack:
            started = [stack.enter_context(self._worker(pair, [], 0)) for pair in pairs]
            quiet = [session for session in started if session is not None]
            for session in quiet:
                with session.guarded("a command", 0.0):
                    session.worker.tell(control="idle", seconds=seconds)
            for session in quiet:
                session.hear("a quiet spell", seconds)
            for session in quiet:
                session.finish()

    @contextmanager
    def _worker(
        self, pair: Pair, blocks: Sequence[tuple[str, float]], planned: int
    ) -> Iterator[Session | None]:
        """A worker that is ready; None where the tool is missing. Its failure ends here."""
        tool, loop = pair
        orders = Orders(tool, loop, list(blocks), self._settle_s, self._sizes)
        run = self._journal.begin(tool, loop, planned)
        with Worker("_stall_worker.py", json.dumps(asdict(orders))) as worker:
            session = Session(self._journal, run, worker, f"{tool} on {loop}")
            with session.guarded("its start", _START_BOUND_S):
                session.greet([kind for kind, _ in blocks])
                self._sizes.update(session.sizes)
            if session.is_over:
                yield None
                return
            yield session


class Session:
    """A worker's run, and the journal it is written to. After a failure, nothing more is asked."""

    def __init__(self, journal: Journal, run: str, worker: Worker, name: str) -> None:
        self.worker = worker
        self.kinds: list[str] = []
        self.sizes: dict[str, int] = {}
        self.is_over = False
        self._journal = journal
        self._run = run
        self._name = name
        self._url = ""

    def greet(self, wanted: Sequence[str]) -> None:
        """Wait until the worker is ready, or says why it never will be."""
        greeting = self.worker.hear()
        if "missing" not in greeting:
            self.kinds, self.sizes = greeting["kinds"], greeting["sizes"]
            without = sorted(set(wanted) - set(self.kinds))
            if without:
                self.note({"without": without})
            greeting = self.worker.hear()
        if "missing" in greeting:
            self.note(greeting)
            self.is_over = True
            console.print(f"{self._name} is left out: {greeting['missing']}")
        self._url = greeting.get("url", "")

    def play(self, stall: Stall) -> None:
        """Have one stall played."""
        command = asdict(stall)
        del command["turn"]
        self._ask(f"a stall ({stall.kind})", stall.wanted_s, command)

    def control(self, name: str, seconds: float) -> None:
        """Have one control played."""
        self._ask(f"the control {name}", seconds, {"control": name, "seconds": seconds})

    def finish(self) -> None:
        """Have the tool stopped."""
        self._ask("the end", 0.0, {"finish": True})

    def hear(self, what: str, seconds: float) -> None:
        """Wait for what the worker was told before."""
        if self.is_over:
            return
        with self.guarded(what, seconds):
            self.note(self.worker.hear())

    def hold(self, kind: str, seconds: float) -> None:
        """Have a long stall played; a tool that can be asked from outside is asked from here."""
        if self.is_over:
            return
        with self.guarded(f"a long stall ({kind})", seconds):
            self.worker.tell(hold=kind, seconds=seconds)
            answers = self._answers(seconds) if self._url else None
            said = self.worker.hear()
            if answers is not None:
                said["hold"]["answers"] = [asdict(answer) for answer in answers]
            self.note(said)

    def note(self, said: Message) -> None:
        """Write down what the worker said."""
        self._journal.add(run=self._run, **said)

    @contextmanager
    def guarded(self, what: str, seconds: float) -> Iterator[None]:
        """End the run where the block fails, and the worker where it takes far too long."""
        try:
            with self.worker.within(_BOUND_S + 3 * seconds, what):
                yield
        except WorkerError as error:
            self._fail(str(error))

    def _ask(self, what: str, seconds: float, command: Message) -> None:
        if self.is_over:
            return
        with self.guarded(what, seconds):
            self.note(self.worker.ask(**command))

    def _fail(self, reason: str) -> None:
        self.is_over = True
        self._journal.add(run=self._run, failed=reason)
        console.print(f"{self._name} failed: {reason}")

    def _answers(self, seconds: float) -> list[Answer]:
        """What the tool's own listener says, asked for again and again for that long."""
        answers: list[Answer] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            try:
                with urllib.request.urlopen(self._url, timeout=_ANSWER_SECONDS) as response:
                    said = json.load(response)["stalls"]
            except (OSError, ValueError):  # no answer, or not all of it
                said = []
            at = time.perf_counter()
            answers += [Answer(at, from_loopscope(one)) for one in said if one["in_progress"]]
            time.sleep(_ASK_SECONDS)
        return answers
