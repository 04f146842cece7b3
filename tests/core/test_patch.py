"""Attributes that are replaced and put back."""

from __future__ import annotations

from typing import Any

import pytest

from loopscope.core.patch import Patch


class Theirs:
    @classmethod
    def name(cls) -> str:
        return cls.__name__


def louder(original: Any) -> Any:
    def name(cls: Any) -> str:
        return str(original.__func__(cls)).upper()

    return classmethod(name)


def test_the_very_object_is_put_back() -> None:
    """A class method is replaced as such, and what was in the class is there again afterwards."""
    original = vars(Theirs)["name"]
    patch = Patch(Theirs, "name", louder)
    assert Theirs.name() == "THEIRS"
    patch.undo()
    assert vars(Theirs)["name"] is original


def test_who_has_replaced_ours_keeps_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch that is no longer on top stays where it is."""
    monkeypatch.setattr(Theirs, "name", vars(Theirs)["name"])  # to be put back in the end
    patch = Patch(Theirs, "name", louder)
    theirs = louder(vars(Theirs)["name"])
    setattr(Theirs, "name", theirs)  # noqa: B010
    patch.undo()
    assert vars(Theirs)["name"] is theirs
    assert Theirs.name() == "THEIRS"


def test_what_is_not_there_cannot_be_replaced() -> None:
    """An attribute that is missing, or a base class', is an error and nothing is set."""
    with pytest.raises(KeyError):
        Patch(Theirs, "__repr__", lambda original: original)
    assert "__repr__" not in vars(Theirs)
