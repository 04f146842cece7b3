"""Stacks: taken from real frames, named so that an on-call engineer knows where to look."""

from __future__ import annotations

import asyncio
import gc
import json
import linecache
import os
import subprocess
import sys
import sysconfig
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import uvloop

from loopscope.core import stacks
from loopscope.core.stacks import Stack, UserCode, take

STDLIB = sysconfig.get_path("stdlib")
PACKAGES = sysconfig.get_path("purelib")

USERS = UserCode()


def code(file: str, name: str = "build") -> CodeType:
    """The code of a function called ``name`` in ``file``."""
    module = compile(f"def {name}(): pass", file, "exec")
    return next(const for const in module.co_consts if isinstance(const, CodeType))


def here() -> Stack:
    return take(sys._getframe(1))


def down(depth: int, then: Callable[[], Stack]) -> Stack:
    """What ``then`` returns, ``depth`` calls further in."""
    return down(depth - 1, then) if depth else then()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that is the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# taking


def test_a_stack_is_outermost_first_with_the_lines_being_run() -> None:
    """The line is the one a frame is at now, not the one its function begins at."""

    def inner() -> Stack:
        return here()

    stack = inner()
    assert [each.co_name for each, _ in stack[-2:]] == [
        "test_a_stack_is_outermost_first_with_the_lines_being_run",
        "inner",
    ]
    assert stack[-1] == (inner.__code__, inner.__code__.co_firstlineno + 1)
    assert stack[-2][1] == inner.__code__.co_firstlineno + 3


def test_a_deep_stack_keeps_its_innermost_frames() -> None:
    """Recursion must not cost more than the limit, and the leaf is what matters."""
    stack = down(300, lambda: take(sys._getframe(), limit=20))
    assert len(stack) == 20
    assert stack[-1][0].co_name == "<lambda>"
    assert {each.co_name for each, _ in stack[:-1]} == {"down"}
    assert len(down(300, here)) == 100


def test_a_thread_without_a_frame_has_an_empty_stack() -> None:
    """A thread may be gone by the time it is asked for."""
    assert take(None) == ()


def test_the_stack_of_another_thread_is_taken_while_it_waits() -> None:
    """That is what the watchdog does to the loop's thread."""
    ready, done = threading.Event(), threading.Event()

    def wait_for_it() -> None:
        ready.set()
        done.wait()

    thread = threading.Thread(target=wait_for_it)
    thread.start()
    ready.wait()
    assert thread.ident is not None
    stack = take(sys._current_frames()[thread.ident])
    done.set()
    thread.join()
    assert wait_for_it.__code__ in [each for each, _ in stack]
    assert "test_stacks.py" in USERS.location(stack)


def test_no_frame_and_no_local_outlives_the_taking() -> None:
    """What a request held must be freed when the request ends, and by reference counts alone."""

    class Payload:
        pass

    def handle() -> tuple[Stack, weakref.ref[Payload]]:
        payload = Payload()
        return here(), weakref.ref(payload)

    gc.disable()
    try:
        stack, payload = handle()
        assert payload() is None
    finally:
        gc.enable()
    assert {type(part) for frame in stack for part in frame} == {CodeType, int}


def test_a_frame_without_a_line_is_at_line_0(project: Path) -> None:
    """Python has instructions that belong to no line; they are named without one."""

    def build() -> Stack:
        return here()

    nowhere = bytes([0x80 | 15 << 3 | 7] * (len(build.__code__.co_code) // 16 + 1))
    build.__code__ = build.__code__.replace(
        co_linetable=nowhere, co_filename=f"{project}/app.py", co_qualname="build"
    )
    stack = build()
    assert stack[-1][1] == 0
    assert UserCode().location(stack) == "app.py build"


def test_no_source_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading files while the loop stands still would add to the stall."""
    monkeypatch.setattr(linecache, "getlines", None)
    monkeypatch.setattr(linecache, "checkcache", None)
    stack = here()
    assert USERS.location(stack)
    assert USERS.described(stack)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_frames_that_run_the_loop_are_left_out_below_a_base(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """A callback sees in its caller what runs the loop; of later stacks, only work is left."""
    bases: list[CodeType] = []
    taken: list[Stack] = []

    def beat() -> None:
        bases.append(sys._getframe(1).f_code)

    def work() -> None:
        taken.append(take(sys._getframe(), base=bases[0]))

    async def main() -> None:
        asyncio.get_running_loop().call_soon(beat)
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(work)
        await asyncio.sleep(0)

    running = loop()
    running.run_until_complete(main())
    running.close()
    assert [each.co_name for each, _ in taken[0]] == ["work"]


# whose code it is


@pytest.mark.parametrize(
    "file",
    [
        f"{STDLIB}/json/decoder.py",
        f"{PACKAGES}/uvicorn/server.py",
        "/usr/lib/python3/dist-packages/apt/cache.py",
        "/home/me/.local/lib/python3.9/site-packages/requests/api.py",
        "<frozen importlib._bootstrap>",
        "<attrs generated init app.models.User>",
        stacks.__file__,
    ],
)
def test_libraries_are_not_the_users(file: str) -> None:
    """Whatever was installed, generated or came with Python; and us."""
    assert not USERS.owns(code(file))


@pytest.mark.parametrize(
    "file",
    ["/srv/app/report.py", "app/report.py", "<string>", "<stdin>", "<ipython-input-3-ab12>"],
)
def test_everything_else_is_the_users(file: str) -> None:
    """Without roots, what nobody installed was written here; also at a prompt."""
    assert USERS.owns(code(file))


def test_compiled_code_is_not_the_users_for_a_relative_name(project: Path) -> None:
    """Cython names sources from where the package was built, which was not here."""
    compiled = code("asyncpg/protocol/protocol.pyx")
    for users in (UserCode(), UserCode([str(project)])):
        assert not users.owns(compiled)
        assert users.describe(compiled) == "asyncpg/protocol/protocol.pyx build"
    assert UserCode().owns(code(f"{project}/app/fast.pyx"))


def test_a_project_may_live_below_the_prefix() -> None:
    """/usr/src/app below /usr, or a project unpacked into its own environment."""
    for prefix in (sys.prefix, sys.base_prefix):
        assert USERS.owns(code(f"{prefix}/src/app/report.py"))


def test_an_environment_inside_of_the_project_is_not_the_projects(project: Path) -> None:
    """Neither by default nor below a root: the innermost folder decides."""
    file = f"{project}/.venv/lib/python3.12/site-packages/httpx/_client.py"
    assert not UserCode().owns(code(file))
    assert not UserCode([str(project)]).owns(code(file))


def test_with_roots_only_what_is_below_them_is_the_users() -> None:
    """Folders are meant whole: /srv/app is not the beginning of /srv/apple."""
    users = UserCode(["/srv/app", "/srv/lib/"])
    assert users.owns(code("/srv/app/report.py"))
    assert users.owns(code("/srv/lib/report.py"))
    for other in ("/srv/apple/report.py", "/srv/main.py", "<string>", "<stdin>"):
        assert not users.owns(code(other))


def test_a_root_inside_of_site_packages_makes_that_package_the_users() -> None:
    """Images often install the service itself."""
    users = UserCode([f"{PACKAGES}/shop"])
    assert users.owns(code(f"{PACKAGES}/shop/report.py"))
    assert not users.owns(code(f"{PACKAGES}/starlette/routing.py"))


def test_a_root_may_be_a_symbolic_link_or_relative(project: Path) -> None:
    """Deployments point ``current`` to a release, and modules know only one of the two names."""
    release = project / "releases" / "42"
    release.mkdir(parents=True)
    (project / "current").symlink_to(release)
    users = UserCode(["current"])
    for folder in (release, project / "current"):
        assert users.owns(code(f"{folder}/report.py"))
        assert users.describe(code(f"{folder}/report.py")) == "report.py build"


def test_a_working_directory_that_is_gone_is_done_without() -> None:
    """Names are longer then, and nothing fails."""
    script = (
        "import os, sys, tempfile; sys.path = [path for path in sys.path if path]\n"
        "from loopscope.core.stacks import UserCode\n"
        "folder = tempfile.mkdtemp(); os.chdir(folder); os.rmdir(folder)\n"
        "code = compile('', '/nowhere/app/report.py', 'exec')\n"
        "print(UserCode(['app']).describe(code, 3), UserCode().describe(code, 3))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(stacks.__file__).parents[2])}
    said = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, check=True, text=True
    )
    assert said.stdout.split() == ["/nowhere/app/report.py:3", "<module>"] * 2


# names


def test_the_location_is_the_deepest_frame_of_the_users(project: Path) -> None:
    """Not the library it called, and not the handler that called it."""
    stack: Stack = (
        (code(f"{PACKAGES}/starlette/routing.py", "app"), 73),
        (code(f"{project}/app/views.py", "report"), 12),
        (code(f"{project}/app/report.py", "build"), 41),
        (code(f"{STDLIB}/json/decoder.py", "raw_decode"), 355),
    )
    users = UserCode()
    assert users.location(stack) == "app/report.py:41 build"
    assert users.find(stack) == 2
    assert users.label(stack) == "app/report.py build"
    assert users.leaf(stack) == "json/decoder.py:355 raw_decode"
    assert users.described(stack) == (
        "starlette/routing.py:73 app",
        "app/views.py:12 report",
        "app/report.py:41 build",
        "json/decoder.py:355 raw_decode",
    )


def test_a_stack_looks_as_if_nobody_watched(project: Path) -> None:
    """Nothing of ours is between a server and the service; what the service calls of ours is."""
    ours = (stacks.take.__code__, 90)
    server = (code(f"{PACKAGES}/uvicorn/server.py", "run"), 11)
    service = (code(f"{project}/app/views.py", "report"), 12)
    read = (code(f"{STDLIB}/os.py", "read"), 5)
    names = [UserCode().describe(*frame) for frame in (server, service, ours, read)]
    assert UserCode().described((server, ours, service, ours, read)) == tuple(names)


def test_the_users_frames_begin_at_the_loop(project: Path) -> None:
    """Innermost first, without libraries, and without what runs the loop."""
    report = (code(f"{project}/app/report.py", "build"), 41)
    view = (code(f"{project}/app/views.py", "report"), 12)
    handle_run = code(f"{STDLIB}/asyncio/events.py", "_run")
    stack: Stack = (
        (code(f"{project}/main.py", "main"), 3),
        (handle_run.replace(co_qualname="Handle._run"), 80),
        view,
        (code(f"{PACKAGES}/starlette/routing.py", "app"), 73),
        report,
        (code(f"{STDLIB}/json/decoder.py", "raw_decode"), 355),
    )
    assert UserCode().frames(stack) == [report, view]


def test_a_real_library_frame_is_named_with_its_class() -> None:
    """As far as Python tells: C functions have no frames."""
    taken: list[Stack] = []

    def hook(pairs: dict[str, Any]) -> dict[str, Any]:
        taken.append(here())
        return pairs

    json.loads("{}", object_hook=hook)
    assert USERS.leaf(taken[0][:-1]).startswith("json/decoder.py:")
    assert USERS.leaf(taken[0][:-1]).endswith(" JSONDecoder.raw_decode")
    assert USERS.location(taken[0]).endswith(
        "test_a_real_library_frame_is_named_with_its_class.<locals>.hook"
    )


def test_without_a_frame_of_the_users_nobody_is_accused() -> None:
    """No location and no label; the leaf still says what was running."""
    stack: Stack = ((code(f"{STDLIB}/selectors.py", "select"), 468),)
    assert USERS.location(stack) == USERS.label(stack) == ""
    assert USERS.leaf(stack) == "selectors.py:468 select"
    assert USERS.leaf(()) == USERS.location(()) == ""


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_who_started_the_loop_is_not_accused_of_what_runs_on_it(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Under ``python main.py`` the main module is below everything, and never at fault."""
    taken: list[Stack] = []

    class Library:
        """Whose callback's code is in site-packages."""

        def __call__(self, frame: FrameType) -> None:
            taken.append(take(frame))

    namespace: dict[str, Any] = {"call": Library()}
    source = "import sys\ndef poll(): call(sys._getframe())\n"
    exec(compile(source, f"{PACKAGES}/lib.py", "exec"), namespace)

    async def main() -> None:
        asyncio.get_running_loop().call_soon(namespace["poll"])
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
    assert any("test_stacks.py" in each.co_filename for each, _ in taken[0])
    assert USERS.leaf(taken[0]) == "lib.py:2 poll"
    assert USERS.location(taken[0]) == ""


def test_generated_code_is_accused_only_where_there_is_no_file(project: Path) -> None:
    """A dataclass' constructor is of "<string>", whoever made it; its caller is the better name."""

    @dataclass
    class Point:
        x: int

    executed = Point.__init__.__code__
    assert executed.co_filename == "<string>"
    caller = code(f"{project}/app.py")
    users = UserCode()
    assert users.location(((caller, 3), (executed, 1))) == "app.py:3 build"
    assert (
        users.location(((code("<string>", "main"), 7), (executed, 1)))
        == f"<string>:1 {executed.co_qualname}"
    )


def test_a_caller_is_found_behind_generated_code() -> None:
    """As a stack's location is: libraries make functions from strings, and call back through."""
    found: list[Any] = []
    names = {"look": lambda: found.append(USERS.caller(sys._getframe(1)))}
    exec("def generated(): look()", names)
    names["generated"]()
    exec("look()", {"look": lambda: found.append(UserCode(["/nowhere"]).caller(None))})
    assert USERS.describe_place(found[0]).endswith(here()[-1][0].co_qualname)
    assert found[1] is None


async def _driven_by(function: Callable[[], Any]) -> Any:
    return _greenlet(function).switch()


def _greenlet(function: Callable[[], Any]) -> Any:
    return import_module("greenlet").greenlet(function)


@pytest.mark.anyio
async def test_a_caller_is_found_through_greenlets() -> None:
    """A coroutine that drives one calls what runs in it; a function that does so may not."""
    inner = compile("def look(see): return see()", f"{PACKAGES}/library.py", "exec")
    names: dict[str, Any] = {}
    exec(inner, names)
    place: Any = None

    def see() -> None:
        nonlocal place
        place = USERS.caller(sys._getframe(1))

    look = partial(names["look"], see)
    await _driven_by(look)
    assert USERS.describe_place(place).endswith("_driven_by")
    _greenlet(look).switch()
    assert USERS.describe_place(place).endswith("through_greenlets")


def test_names_are_relative_to_the_innermost_root() -> None:
    """Roots come first, whatever the working directory is."""
    users = UserCode(["/srv", "/srv/shop"])
    assert users.describe(code("/srv/shop/app/report.py"), 41) == "app/report.py:41 build"
    assert users.describe(code("/srv/main.py"), 1) == "main.py:1 build"


def test_elsewhere_names_are_relative_to_the_import_path(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The innermost entry of it, and as it is now: servers add theirs late."""
    users = UserCode()
    path: list[Any] = ["/opt/shop", "", Path("/opt/shop/src/app"), "/opt/shop/src/../src"]
    monkeypatch.setattr(sys, "path", path)
    assert users.describe(code("/opt/shop/src/app/report.py"), 41) == "app/report.py:41 build"
    assert users.describe(code("/opt/else/report.py"), 1) == "/opt/else/report.py:1 build"


def test_the_root_of_the_file_system_shortens_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the working directory of many a container; the import path says more."""
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "path", ["/srv"])
    assert UserCode().describe(code("/srv/app/report.py"), 41) == "app/report.py:41 build"


def test_a_path_is_tidied_before_it_is_judged(project: Path) -> None:
    """``sys.path.insert(0, ".../..")`` is common, and ends up in file names."""
    assert (
        UserCode().describe(code(f"{project}/tests/../app/report.py"), 2) == "app/report.py:2 build"
    )
    assert UserCode().describe(code("./report.py"), 2) == "report.py:2 build"


def test_our_own_frames_are_named_as_ours() -> None:
    """Wherever loopscope is installed."""
    assert USERS.describe(code(stacks.__file__), 2) == "loopscope/core/stacks.py:2 build"


def test_a_name_can_always_be_encoded() -> None:
    """File names are bytes; what is no text in them must not break an export."""
    assert USERS.describe(code("/srv/\udcff.py"), 1).encode() == rb"/srv/\udcff.py:1 build"


# memory


def test_the_same_function_in_two_files_is_two() -> None:
    """Python's code objects compare equal whatever their file, so they are no keys."""
    one, other = code("/srv/one.py"), code("/srv/other.py")
    assert one == other
    assert USERS.describe(one, 1) == "/srv/one.py:1 build"
    assert USERS.describe(other, 1) == "/srv/other.py:1 build"


def test_a_frame_has_one_name_however_often_it_is_asked_for() -> None:
    """Thousands of stacks share their strings."""
    build = code("/srv/app/report.py")
    assert USERS.describe(build, 41) is USERS.describe(build, 41)


def test_memory_is_bounded_by_frames_and_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates and notebooks make new files for as long as they run."""
    monkeypatch.setattr(stacks, "_MAX_MEMO", 3)
    users = UserCode()
    for number in range(10):
        for line in (1, 2):
            assert users.describe(code(f"/t/{number}.py"), line) == f"/t/{number}.py:{line} build"
        assert len(users._files) <= 3
        assert len(users._names) <= 3
