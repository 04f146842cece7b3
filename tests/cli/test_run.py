"""``loopscope run``: the command is what it would have been, and so is every Python below it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from loopscope.cli import main

RUN = [sys.executable, "-m", "loopscope", "run"]

SERVES = """
import asyncio, sys, uvicorn
{first}
async def app(scope, receive, send): ...
config = uvicorn.Config({app}, log_config=None)
config.load()
app = config.loaded_app
while app is not None:
    print(type(app).__name__)
    app = getattr(app, "app", None)
print("loopscope" in sys.modules)
"""


def run(*command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *command], env={**os.environ, **environ},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def serve(app: str = "app", first: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    """What a uvicorn makes of ``app``, outermost first."""
    return run("--", sys.executable, "-c", SERVES.format(app=app, first=first), **environ)


@pytest.mark.parametrize("command", [[], ["--"], ["--", "--workers", "2"]])
def test_no_command_is_an_error_that_shows_one(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and an example."""
    assert main(["run", *command]) == 2
    assert "loopscope run -- uvicorn" in capsys.readouterr().err


def test_what_cannot_be_run_is_said_as_shells_do(tmp_path: Path) -> None:
    """127 for what is not there, 126 for what is no program."""
    missing = run("--", "no-such-command", "--port", "1")
    assert (missing.returncode, missing.stdout) == (127, "")
    assert missing.stderr == "loopscope: no-such-command: command not found\n"
    file = tmp_path / "file"
    file.write_text("text")
    assert run("--", str(file)).returncode == 126


def test_a_wrong_setting_keeps_the_service_from_starting() -> None:
    """It is said before anything runs, not in the log of a worker."""
    ended = run("--", sys.executable, "-c", "print('ran')", LOOPSCOPE_MAX_SERIES="many")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "LOOPSCOPE_MAX_SERIES" in ended.stderr


def test_arguments_and_exit_code_are_the_commands(tmp_path: Path) -> None:
    """Also such as look like ours."""
    code = "import sys; print(sys.argv[1:]); sys.exit(7)"
    for separator in ([], ["--"]):
        ended = run(*separator, sys.executable, "-c", code, "--", "--version", "-h", "")
        assert ended.returncode == 7
        assert ended.stdout == "['--', '--version', '-h', '']\n"
        assert ended.stderr == ""


def test_the_command_takes_the_place_of_ours() -> None:
    """One process, not two: a signal sent to it is the service's, and so is how it ends."""
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with subprocess.Popen([*RUN, "--", sys.executable, "-c", code], stdout=subprocess.PIPE) as it:
        assert it.stdout is not None
        assert int(it.stdout.readline()) == it.pid
        it.terminate()
        assert it.wait(60) == -signal.SIGTERM


@pytest.mark.skipif(not Path("/proc").exists(), reason="ignored signals are read there")
def test_no_signal_is_ignored_that_was_not() -> None:
    """Python ignores SIGPIPE, and what is ignored stays so across an exec: a shell must not."""

    def ignored(command: list[str]) -> int:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return int(said.split()[1], 16) & 0x7FFFFFFF  # above are real-time signals: the C library's

    command = ["grep", "SigIgn", "/proc/self/status"]
    assert ignored([*RUN, "--", *command]) == ignored(command)


def test_a_python_that_serves_nothing_looks_as_it_did() -> None:
    """Its path is what it was, loopscope is not imported, and no sitecustomize is there."""
    code = "import sys; print(sys.path, sorted(sys.modules))"
    bare = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run("--", sys.executable, "-c", code).stdout == bare.stdout


def test_the_users_own_sitecustomize_runs(tmp_path: Path) -> None:
    """It is the module by that name, and one that serves is measured all the same."""
    (tmp_path / "sitecustomize.py").write_text("print('mine'); NAME = 'mine'")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    ended = serve(first="import sitecustomize; print(sitecustomize.NAME)", PYTHONPATH=path)
    said = ended.stdout.splitlines()[1:]  # the first is that of the command line's own Python
    assert said[:3] == ["mine", "mine", "Loopscope"]
    assert ended.stderr == ""


def test_an_error_in_the_users_sitecustomize_is_told_as_always(tmp_path: Path) -> None:
    """By Python, and it is the user's: not even a missing module is taken for our own business."""
    (tmp_path / "sitecustomize.py").write_text("import no_such_module")
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", "pass"]
    bare = subprocess.run(command, capture_output=True, text=True, env=environ, check=True)
    where = [each for each in sys.path if each.endswith("agent")]
    path = os.pathsep.join([str(tmp_path), *where])
    assert run("--", *command, PYTHONPATH=path).stderr == 2 * bare.stderr  # ours is a Python, too


def test_what_uvicorn_serves_is_measured_and_what_it_is_given_stays() -> None:
    """Around everything, whoever wrote the app."""
    assert serve().stdout.splitlines() == [
        "Loopscope",
        "ProxyHeadersMiddleware",
        "function",
        "True",
    ]


def test_a_factory_is_called_before_its_app_is_measured() -> None:
    """``--factory`` works as ever."""
    assert serve("lambda: app, factory=True").stdout.splitlines()[:2] == [
        "Loopscope", "ProxyHeadersMiddleware",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "app",
    [
        "loopscope.Loopscope(app)",
        "Starlette(middleware=[Middleware(loopscope.Loopscope)])",
    ],
)
def test_an_app_with_the_middleware_keeps_its_own(app: str) -> None:
    """With the settings of its source: it is neither measured twice nor by another."""
    starlette = "from starlette.applications import Starlette, Middleware"
    ended = serve(app, f"import loopscope\n{starlette}")
    assert ended.stdout.splitlines()[0] == "ProxyHeadersMiddleware"


def test_switched_off_nothing_is_there() -> None:
    """``LOOPSCOPE_ENABLED=0``: no hook, no import."""
    ended = serve(first="print(sys.meta_path)", LOOPSCOPE_ENABLED="0")
    assert "sitecustomize" not in ended.stdout
    assert ended.stdout.splitlines()[1:] == ["ProxyHeadersMiddleware", "function", "False"]


def test_whatever_goes_wrong_is_said_once_and_the_app_is_served() -> None:
    """A loopscope that cannot be imported is no reason not to serve."""
    other = "async def other(scope, receive, send): ..."
    first = f"sys.modules['loopscope'] = None\n{other}\nuvicorn.Config(other).load()"
    ended = serve(first=first)
    assert ended.stdout.splitlines() == ["ProxyHeadersMiddleware", "function", "True"]
    assert ended.stderr.count("loopscope run: not measuring") == 1
    assert sys.executable in ended.stderr
    assert ended.returncode == 0


def test_a_server_of_a_version_unknown_is_served_unmeasured(tmp_path: Path) -> None:
    """What is hooked into may be called something else one day."""
    (tmp_path / "hypercorn").mkdir()
    (tmp_path / "hypercorn" / "__init__.py").touch()
    (tmp_path / "hypercorn" / "app_wrappers.py").touch()
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    ended = run("--", sys.executable, "-c", "import hypercorn.app_wrappers", PYTHONPATH=path)
    assert ended.returncode == 0
    assert "does not know this version of hypercorn.app_wrappers" in ended.stderr


@pytest.mark.parametrize("option", ["-I", "-E", "-S", "-IS", "-uE"])
def test_a_python_out_of_reach_is_told_so(option: str) -> None:
    """It runs all the same."""
    ended = run("--", sys.executable, "-u", "-Wignore", option, "-c", "print('ran')", "-I")
    assert ended.stdout == "ran\n"
    assert "not measured" in ended.stderr


def test_what_only_looks_like_such_an_option_is_none() -> None:
    """Values of other options, and arguments of the program's own."""
    within_reach = run("--", sys.executable, "-WIgnore", "-XEI", "-c", "pass", "-I")
    assert "not measured" not in within_reach.stderr
