"""Modules that are waited for, and an import system that is none the worse for it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from loopscope.core.faults import Faults
from loopscope.core.imports import Imports


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to import from: ``wanted`` and ``other``, and ``broken``, which raises."""
    (tmp_path / "wanted.py").write_text("value = 7\n")
    (tmp_path / "other.py").write_text("")
    (tmp_path / "broken.py").write_text("import other\nraise LookupError('no')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("wanted", "other", "broken"):
        sys.modules.pop(name, None)


@pytest.fixture
def imports() -> Iterator[Imports]:
    imports = Imports(Faults())
    before = list(sys.meta_path)
    yield imports
    imports.stop()
    assert sys.meta_path == before


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_a_module_that_is_loaded_is_told_of_at_once(imports: Imports) -> None:
    """For what is there nobody waits, and no hook is set."""
    told: list[ModuleType] = []
    imports.when_imported("json", told.append)
    assert told == [sys.modules["json"]]
    assert imports not in sys.meta_path


def test_a_module_is_told_of_when_it_is_whole(imports: Imports, folder: Path) -> None:
    """Listeners hear of a module after its code has run, each once, and then the hook is gone."""
    told: list[tuple[int, ModuleType]] = []
    imports.when_imported("wanted", lambda module: told.append((module.value, module)))
    imports.when_imported("wanted", lambda module: told.append((module.value, module)))
    load("other")
    assert not told
    assert imports in sys.meta_path
    wanted = load("wanted")
    assert told == [(7, wanted)] * 2
    assert imports not in sys.meta_path


def test_a_module_looks_as_if_nobody_had_waited(imports: Imports, folder: Path) -> None:
    """Loader and spec are the usual ones, with nothing of ours left on them."""
    imports.when_imported("wanted", lambda _: None)
    wanted = load("wanted")
    assert type(wanted.__loader__) is SourceFileLoader
    assert wanted.__spec__ is not None
    assert wanted.__spec__.loader is wanted.__loader__
    assert "exec_module" not in vars(wanted.__loader__)


def test_an_import_that_fails_is_waited_for_again(imports: Imports, folder: Path) -> None:
    """A module that raises is not told of; once it is mended, it is."""
    told: list[ModuleType] = []
    imports.when_imported("broken", told.append)
    with pytest.raises(LookupError):
        load("broken")
    assert not told
    (folder / "broken.py").write_text("value = 'mended, and of another length'\n")
    importlib.invalidate_caches()
    assert told == [load("broken")]


def test_a_module_that_is_not_there_is_not_found(imports: Imports, folder: Path) -> None:
    """Waiting for a module does not make one."""
    imports.when_imported("nowhere", lambda _: None)
    with pytest.raises(ModuleNotFoundError):
        load("nowhere")
    assert importlib.util.find_spec("nowhere") is None


def test_looking_for_a_module_is_not_importing_it(imports: Imports, folder: Path) -> None:
    """``find_spec`` tells nobody; the import that follows does."""
    told: list[ModuleType] = []
    imports.when_imported("wanted", told.append)
    assert importlib.util.find_spec("wanted") is not None
    assert not told
    assert told == [load("wanted")]


@pytest.mark.quiet_faults
def test_a_listener_that_fails_is_a_fault_and_the_others_hear(folder: Path) -> None:
    """The module is imported whatever a listener does."""
    faults = Faults()
    imports = Imports(faults)
    told: list[ModuleType] = []
    imports.when_imported("wanted", lambda module: module.no_such_thing)
    imports.when_imported("wanted", told.append)
    assert told == [load("wanted")]
    assert faults.counts == {"imports": 1}


def test_after_stop_nobody_hears(imports: Imports, folder: Path) -> None:
    """Once stopped, even an import that is under way is not told of."""
    told: list[ModuleType] = []
    imports.when_imported("wanted", told.append)
    (folder / "wanted.py").write_text("import stopper\n")
    (folder / "stopper.py").write_text("")
    imports.when_imported("stopper", lambda _: imports.stop())
    load("wanted")
    sys.modules.pop("stopper")
    assert not told
    assert imports not in sys.meta_path


def test_an_import_in_another_thread_is_waited_for(imports: Imports, folder: Path) -> None:
    """A module that is just being imported is told of when that is done."""
    (folder / "wanted.py").write_text(
        "import time\nbegan = True\nwhile 'go' not in globals(): time.sleep(0.001)\nvalue = 7\n"
    )
    thread = threading.Thread(target=load, args=("wanted",))
    thread.start()
    while not hasattr(sys.modules.get("wanted"), "began"):
        pass
    told: list[int] = []
    threading.Timer(0.05, lambda: setattr(sys.modules["wanted"], "go", True)).start()
    imports.when_imported("wanted", lambda module: told.append(module.value))
    thread.join()
    assert told == [7]


class Hook:
    """Somebody else's hook of the same kind, which asks the whole import system."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._looking = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "wanted" or self._looking:
            return None
        self._looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._looking = False
        if spec is not None:
            spec.loader = Wrapping(spec.loader, self.seen)  # type: ignore[assignment]
        return spec


class Wrapping:
    """A loader that stands for another, all of whose attributes are the other's."""

    def __init__(self, loader: Any, seen: list[str]) -> None:
        self.__dict__["loader"] = loader
        self.__dict__["seen"] = seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["loader"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["loader"], name, value)

    def exec_module(self, module: ModuleType) -> None:
        self.__dict__["loader"].exec_module(module)
        self.__dict__["seen"].append(module.__name__)


@pytest.mark.parametrize("theirs_is_first", [False, True])
def test_hooks_of_others_hear_as_well(
    imports: Imports, folder: Path, monkeypatch: pytest.MonkeyPatch, theirs_is_first: bool
) -> None:
    """Whoever came first, each hears once, and the module runs once."""
    (folder / "wanted.py").write_text("import other\nother.runs = getattr(other, 'runs', 0) + 1\n")
    told: list[ModuleType] = []
    hook = Hook()
    imports.when_imported("wanted", told.append)
    position = 0 if theirs_is_first else sys.meta_path.index(imports) + 1
    sys.meta_path.insert(position, hook)
    try:
        wanted = load("wanted")
    finally:
        sys.meta_path.remove(hook)
    assert told == [wanted]
    assert hook.seen == ["wanted"]
    assert wanted.other.runs == 1
