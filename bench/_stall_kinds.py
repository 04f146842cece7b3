"""What blocks: one small function a kind, each with a word on the truth about it.

A line that blocks ends in `# blocks`. That is what the location a tool reports is held against, so
a function may grow without a line number being kept by hand. The rest of the truth is the cause, in
the classes of the agent's `/api/stalls`: a call that waits without using the CPU (`blocking_call`),
one that computes (`cpu`), a `lock`, `gc`, `import`. Kinds that need the loop itself to be played
are in `_stall_loop_kinds.py`.

Whatever takes long to make ready (payloads of a calibrated size) is made by `Kind.prepare`, before
the tool under test is started.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import importlib
import inspect
import json
import os
import random
import re
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

Block = Callable[[], object]
"""Blocks whoever calls it."""

Prepare = Callable[[float], Block]
"""Makes a block of about that many seconds."""

_MARK = "# blocks"
_PROBE_SECONDS = 0.02
_TOLERANCE = 0.1
_TAIL_SECONDS = 0.015
_HEAP_OBJECTS = 200_000
_BIG_HEAP_OBJECTS = 500_000
_SLOW_MODULE = """\
import time
end = time.perf_counter() + {seconds}
while time.perf_counter() < end:
    pass
"""


@dataclass(frozen=True)
class Kind:
    """One way of blocking a thread."""

    key: str
    causes: tuple[str, ...]
    prepare: Prepare
    functions: tuple[Callable[..., object], ...]
    """Where the lines that block are."""
    package: str = ""
    """What has to be installed for it."""
    names: str = "line"
    """What a tool should name, see `Truth.names`."""

    @property
    def lines(self) -> list[str]:
        """`file.py:line` of everything that blocks."""
        marked = [line for function in self.functions for line in blocking_lines(function)]
        return marked + slow_module_lines() if self.key == "import" else marked


def blocking_lines(function: Callable[..., object]) -> list[str]:
    """`file.py:line` of the lines of `function` that are marked."""
    source, first = inspect.getsourcelines(function)
    name = Path(inspect.getsourcefile(function) or "").name
    return [
        f"{name}:{first + place}"
        for place, line in enumerate(source)
        if line.rstrip().endswith(_MARK)
    ]


def sleep(seconds: float) -> None:
    """Truth: the classic. The thread waits in the kernel, GIL released."""
    time.sleep(seconds)  # blocks


def receive(address: tuple[str, int], seconds: float) -> None:
    """Truth: waits in `recv` for a server that takes its time, GIL released."""
    with socket.create_connection(address) as connection:
        connection.sendall(f"{seconds}\n".encode())
        connection.recv(1)  # blocks


def query(connection: sqlite3.Connection, rows: int) -> None:
    """Truth: SQLite computes in this thread, GIL released."""
    counted = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < ?)"
    connection.execute(f"{counted} SELECT count(*) FROM n", (rows,)).fetchone()  # blocks


def sync_file(file: int, chunk: bytes, seconds: float) -> None:
    """Truth: waits for the disk over and over, GIL released."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        os.pwrite(file, chunk, 0)  # blocks
        os.fsync(file)  # blocks


def run_child(seconds: float) -> None:
    """Truth: waits for a child. The leaf is a selector, as if the loop were idle; it is not."""
    subprocess.run(["sleep", str(seconds)], capture_output=True, check=True)  # blocks


def wait_for_lock(seconds: float) -> None:
    """Truth: another thread holds the lock, and just sleeps."""
    lock, held = threading.Lock(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            time.sleep(seconds)

    holder = threading.Thread(target=hold, name="lock-holder")
    holder.start()
    held.wait()
    lock.acquire()  # blocks
    holder.join()


def compute(count: int) -> None:
    """Truth: Python bytecode, so the GIL is given away on demand."""
    sum(number * number for number in range(count))  # blocks


def backtrack(pattern: re.Pattern[str], text: str) -> None:
    """Truth: one call that holds the GIL and the CPU all along (trailing whitespace, quadratic)."""
    pattern.search(text)  # blocks


def parse(text: str) -> None:
    """Truth: one call that holds the GIL, over tens of megabytes of JSON."""
    json.loads(text)  # blocks


def order(values: list[float]) -> None:
    """Truth: one call that holds the GIL."""
    sorted(values)  # blocks


def order_by_key(values: list[float]) -> None:
    """Truth: C that calls Python for each element; the line of either is right."""
    sorted(values, key=lambda value: -value)  # blocks


def validate(validator: Any, rows: list[dict[str, object]]) -> None:
    """Truth: one call into Rust that holds the GIL."""
    validator.validate_python(rows)  # blocks


def derive_key(iterations: int) -> None:
    """Truth: OpenSSL computes in this thread, GIL released."""
    hashlib.pbkdf2_hmac("sha256", b"password", b"salt", iterations)  # blocks


def order_array(sort: Callable[[Any], object], values: Any) -> None:
    """Truth: numpy computes in this thread, GIL released."""
    sort(values)  # blocks


def order_objects(sort: Callable[[Any], object], values: Any) -> None:
    """Truth: numpy sorts Python's objects, which takes the GIL all along."""
    sort(values)  # blocks


def collect(seconds: float) -> None:
    """Truth: the collector walks half a million objects, over and over, GIL held.

    Where a collection strikes is chance, so no line is asked for; the one that asked is not wrong.
    """
    gc.unfreeze()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        gc.collect()  # blocks
    gc.freeze()


def import_late(module: str) -> None:
    """Truth: a module with much to do is imported at first use; lines inside it are right too."""
    sys.modules.pop(module, None)
    importlib.import_module(module)  # blocks


def hold_gil(usleep: Callable[[int], object], seconds: float) -> None:
    """Truth: a C call sleeps with the GIL held. The tail that follows is innocent."""
    usleep(int(seconds * 1e6))  # blocks
    innocent_tail()


def innocent_tail() -> None:
    """Runs when the GIL is first free again: whoever looks then must not blame it."""
    end = time.perf_counter() + _TAIL_SECONDS
    while time.perf_counter() < end:
        pass


def alternate(seconds: float, count: int) -> None:
    """Truth: two blockers take turns in one stall; either is right."""
    for _ in range(2):
        time.sleep(seconds / 4)  # blocks
        sum(number * number for number in range(count))  # blocks


SIZES: dict[str, int] = {}
"""Sizes that were found, by name and seconds: a process that is given them finds none itself."""


def calibrated(
    name: str,
    run: Callable[[Any], object],
    make: Callable[[int], Any],
    probe: int,
    power: float = 1.0,
) -> Prepare:
    """Prepare `run(make(size))` with the size that takes the time; time grows as size ** power.

    The size is found from `probe` upwards, when the first block is asked for. Big payloads fall out
    of caches and take longer than small ones let expect: each is tried, and made anew if need be.
    What was found is kept in `SIZES` under `name`.
    """

    @cache
    def rate() -> float:
        size = probe
        while (took := _fastest(run, make(size))) < _PROBE_SECONDS:
            size *= 2
        return float(size / took ** (1 / power))

    def prepare(seconds: float) -> Block:
        key = f"{name} {seconds:g}"
        if key in SIZES:
            return partial(run, make(SIZES[key]))
        size = int(rate() * seconds ** (1 / power))
        payload = make(size)
        took = _fastest(run, payload, times=2)
        if abs(took / seconds - 1) > _TOLERANCE:
            size = int(size * (seconds / took) ** (1 / power))
            payload = make(size)
        SIZES[key] = size
        return partial(run, payload)

    return prepare


def _fastest(run: Callable[[Any], object], payload: Any, times: int = 3) -> float:
    took = []
    for _ in range(times):
        started = time.perf_counter()
        run(payload)
        took.append(time.perf_counter() - started)
    return min(took)


@cache
def slow_server() -> tuple[str, int]:
    """Start a server that answers each connection after as many seconds as it asks for."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                time.sleep(float(connection.recv(64)))
                connection.sendall(b".")

    threading.Thread(target=serve, name="slow-server", daemon=True).start()
    address: tuple[str, int] = listener.getsockname()
    return address


@cache
def _directory() -> Path:
    """Where modules and files are made; gone with the process."""
    directory = tempfile.TemporaryDirectory(prefix="stalls-")
    _kept.append(directory)
    return Path(directory.name)


_kept: list[object] = []
"""What has to live as long as the process."""


def slow_module_lines() -> list[str]:
    """Every line of the modules that `import_late` imports."""
    names = sorted(path.name for path in _directory().glob("slow_*.py"))
    count = _SLOW_MODULE.count("\n")
    return [f"{name}:{line}" for name in names for line in range(1, count + 1)]


def _prepare_import(seconds: float) -> Block:
    name = f"slow_{int(seconds * 1000)}"
    (_directory() / f"{name}.py").write_text(_SLOW_MODULE.format(seconds=seconds))
    if str(_directory()) not in sys.path:
        sys.path.append(str(_directory()))
    return partial(import_late, name)


def _prepare_file(seconds: float) -> Block:
    file = os.open(_directory() / "synced", os.O_CREAT | os.O_RDWR)
    return partial(sync_file, file, bytes(65536), seconds)


@cache
def _big_heap() -> None:
    """Make what `collect` walks. `fill_heap` freezes it: other collections do not."""
    _kept.append([[number] for number in range(_BIG_HEAP_OBJECTS)])


def _prepare_collect(seconds: float) -> Block:
    _big_heap()
    return partial(collect, seconds)


def fill_heap() -> None:
    """Freeze what exists, and leave the collector a heap that takes some 10 ms to walk.

    Payloads are frozen, so collections that nobody asked for stay well below the threshold.
    """
    gc.collect()
    gc.freeze()
    _kept.append([[number] for number in range(_HEAP_OBJECTS)])


def _prepare_alternate(seconds: float) -> Block:
    count: int = COMPUTE(seconds / 4).args[0]  # type: ignore[attr-defined]
    return partial(alternate, seconds, count)


def _rows(count: int) -> list[dict[str, object]]:
    # The same row each time: as long to validate, and nothing for the collector to walk.
    return [{"id": 7, "name": "a name", "tags": ["a", "b"], "price": 9.5}] * count


def _prepare_validate(seconds: float) -> Block:
    return _validate()(seconds)


@cache
def _validate() -> Prepare:
    from pydantic import BaseModel, TypeAdapter

    class Item(BaseModel):
        id: int
        name: str
        tags: list[str]
        price: float

    return calibrated("pydantic", partial(validate, TypeAdapter(list[Item])), _rows, 1000)


def _prepare_array(seconds: float) -> Block:
    return _order_array()(seconds)


@cache
def _order_array() -> Prepare:
    import numpy as np

    draw = np.random.default_rng(0)
    return calibrated("numpy", partial(order_array, np.sort), draw.random, 50_000)


def _prepare_objects(seconds: float) -> Block:
    return _order_objects()(seconds)


@cache
def _order_objects() -> Prepare:
    import numpy as np

    draw = np.random.default_rng(0)

    def make(size: int) -> Any:
        return draw.random(size).astype(object)

    return calibrated("numpy-gil", partial(order_objects, np.sort), make, 5000, 1.05)


def _numbers(count: int) -> list[float]:
    draw = random.Random(0)
    return [draw.random() for _ in range(count)]


def _query() -> Callable[[int], None]:
    return partial(query, sqlite3.connect(":memory:", check_same_thread=False))


WHITESPACE = re.compile(r"\s+$")
COMPUTE = calibrated("python", compute, int, 10_000)
BACKTRACK = calibrated(
    "regex", partial(backtrack, WHITESPACE), lambda size: " " * size + ".", 500, 2
)
_DOCUMENT = '{"id": 12345, "name": "a name", "tags": ["a", "b"], "price": 9.5},'
_WAITS = ("blocking_call",)
_COMPUTES = ("cpu",)

KINDS = (
    Kind("sleep", _WAITS, lambda seconds: partial(sleep, seconds), (sleep,)),
    Kind("socket", _WAITS, lambda s: partial(receive, slow_server(), s), (receive,)),
    Kind("sqlite", _COMPUTES, calibrated("sqlite", _query(), int, 10_000), (query,)),
    Kind("fsync", _WAITS, _prepare_file, (sync_file,)),
    Kind("subprocess", _WAITS, lambda s: partial(run_child, s), (run_child,)),
    Kind("lock", ("lock",), lambda s: partial(wait_for_lock, s), (wait_for_lock,)),
    Kind("python", _COMPUTES, COMPUTE, (compute,)),
    Kind("regex", _COMPUTES, BACKTRACK, (backtrack,)),
    Kind(
        "json",
        _COMPUTES,
        calibrated("json", parse, lambda size: f"[{_DOCUMENT * size}0]", 1000),
        (parse,),
    ),
    Kind("sort", _COMPUTES, calibrated("sort", order, _numbers, 5000, 1.05), (order,)),
    Kind(
        "sort-key",
        _COMPUTES,
        calibrated("sort-key", order_by_key, _numbers, 5000, 1.05),
        (order_by_key,),
    ),
    Kind("pydantic", _COMPUTES, _prepare_validate, (validate,), "pydantic"),
    Kind("pbkdf2", _COMPUTES, calibrated("pbkdf2", derive_key, int, 1000), (derive_key,)),
    Kind("numpy", _COMPUTES, _prepare_array, (order_array,), "numpy"),
    Kind("numpy-gil", _COMPUTES, _prepare_objects, (order_objects,), "numpy"),
    Kind("gc", ("gc",), _prepare_collect, (collect,), names="cause"),
    Kind("import", ("import",), _prepare_import, (import_late,)),
    Kind(
        "gil-tail",
        _WAITS,
        lambda seconds: partial(hold_gil, ctypes.PyDLL(None).usleep, seconds),
        (hold_gil,),
    ),
    Kind("alternating", (*_WAITS, *_COMPUTES), _prepare_alternate, (alternate,)),
)
"""All of them, by way of `Kind.key` on the command line."""
