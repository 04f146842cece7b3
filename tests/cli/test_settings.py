"""``loopscope settings``, and what the command line says when it cannot."""

from __future__ import annotations

import pytest

from loopscope import __version__
from loopscope.cli import main


def test_a_setting_is_listed_with_its_value_and_where_that_came_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the environment says stands beside what it does not speak of."""
    monkeypatch.setenv("LOOPSCOPE_MAX_SERIES", "77")
    assert main(["settings"]) == 0
    listed = capsys.readouterr().out
    assert "max_series = 77   [from LOOPSCOPE_MAX_SERIES]" in listed
    assert "stall_threshold = 0.05   [default]" in listed


def test_a_wrong_setting_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, and one line that says which."""
    monkeypatch.setenv("LOOPSCOPE_MAX_SERIES", "many")
    assert main(["settings"]) == 2
    assert "LOOPSCOPE_MAX_SERIES" in capsys.readouterr().err


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    """As programs do."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert __version__ in capsys.readouterr().out
