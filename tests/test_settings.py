"""Settings: where they come from, and what is said when they are wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loopscope.settings import Settings, SettingsError, explain, resolve


def test_without_anything_defaults_hold() -> None:
    """The listener is on loopback, measuring is on."""
    settings = resolve({}, {})
    assert settings.listen_address == ("127.0.0.1", 9464)
    assert settings.enabled
    assert set(settings.origins.values()) == {"default"}


def test_keywords_win_over_the_environment_and_that_over_defaults() -> None:
    """Each value knows where it came from."""
    settings = resolve(
        {"max_series": 50}, {"LOOPSCOPE_MAX_SERIES": "60", "LOOPSCOPE_LISTEN": "[::1]:0"}
    )
    assert settings.max_series == 50
    assert settings.listen_address == ("::1", 0)
    assert settings.origins["max_series"] == "keyword"
    assert settings.origins["listen"] == "LOOPSCOPE_LISTEN"
    assert settings.origins["token"] == "default"


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("LOOPSCOPE_ENABLED", "off", "enabled", False),
        ("LOOPSCOPE_REQUEST_START", "YES", "request_start", True),
        ("LOOPSCOPE_DIR", "/tmp/x", "directory", Path("/tmp/x")),
        ("LOOPSCOPE_EXCLUDE", "^/health, ^/ready", "exclude", ("^/health", "^/ready")),
        ("LOOPSCOPE_LISTEN", "off", "listen_address", None),
    ],
)
def test_variables_become_what_they_mean(variable: str, text: str, name: str, value: Any) -> None:
    """Text from the environment is read by the setting's own rules."""
    assert getattr(resolve({}, {variable: text}), name) == value


@pytest.mark.parametrize(
    ("keywords", "environ", "said"),
    [
        ({"max_serie": 5}, {}, "did you mean max_series"),
        ({}, {"LOOPSCOPE_LISTENS": "off"}, "did you mean LOOPSCOPE_LISTEN"),
        ({"max_series": "many"}, {}, "max_series is 'many'; allowed: a whole number, 10 or more"),
        ({"max_series": True}, {}, "max_series is True"),
        ({"max_series": 3}, {}, "10 or more"),
        ({}, {"LOOPSCOPE_LISTEN": "9464"}, "LOOPSCOPE_LISTEN is '9464'; allowed: host:port"),
        ({}, {"LOOPSCOPE_LISTEN": "localhost:99999"}, "allowed: host:port"),
        ({}, {"LOOPSCOPE_EXCLUDE": "(["}, "no regular expression"),
        ({}, {"LOOPSCOPE_ENABLED": "maybe"}, "true or false"),
        ({"token": 5}, {}, "token is (hidden)"),
        ({"traces": "sometimes"}, {}, "auto or off"),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(
    keywords: dict[str, Any], environ: dict[str, str], said: str
) -> None:
    """The error names the setting, the value and what would be right."""
    with pytest.raises(SettingsError) as caught:
        resolve(keywords, environ)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "variable",
    [
        "LOOPSCOPE_SERVICE_HOST",
        "LOOPSCOPE_SERVICE_PORT_METRICS",
        "LOOPSCOPE_PORT",
        "LOOPSCOPE_PORT_9464_TCP",
        "LOOPSCOPE_PORT_9464_TCP_ADDR",
        "LOOPSCOPE_GRAFANA_SERVICE_PORT",
        "LOOPSCOPE_GRAFANA_PORT_80_TCP_PROTO",
    ],
)
def test_what_kubernetes_says_of_a_service_called_like_us_is_no_setting(variable: str) -> None:
    """Every pod beside a Service called loopscope has variables that begin as ours do."""
    assert resolve({}, {variable: "tcp://10.0.0.1:9464"}) == Settings()


@pytest.mark.parametrize("variable", ["LOOPSCOPE_LISTEN", "LOOPSCOPE_SENTINEL", "LOOPSCOPE_WHAT"])
def test_a_variable_that_is_empty_is_not_set(variable: str) -> None:
    """So are those that a template had nothing to fill in for."""
    settings = resolve({}, {variable: ""})
    assert settings == Settings()
    assert set(settings.origins.values()) == {"default"}


def test_settings_are_frozen() -> None:
    """Nobody changes settings after start-up."""
    with pytest.raises(AttributeError):
        Settings().listen = "off"  # type: ignore[misc]


def test_a_token_is_never_shown() -> None:
    """Explaining settings does not give secrets away."""
    (token,) = [each for each in explain(resolve({"token": "secret"}, {})) if each.name == "token"]
    assert token.value == "(set)"


def test_the_command_line_prints_every_setting_with_its_origin() -> None:
    """``python -m loopscope settings`` shows value, origin and what is allowed."""
    done = subprocess.run(
        [sys.executable, "-m", "loopscope", "settings"],
        capture_output=True,
        text=True,
        check=True,
        env={"LOOPSCOPE_MAX_SERIES": "77"},
    )
    assert "max_series = 77   [from LOOPSCOPE_MAX_SERIES]" in done.stdout
    assert done.stdout.count("[default]") == len(explain(Settings())) - 1


def test_the_command_line_says_what_is_wrong() -> None:
    """A wrong environment is one sentence on stderr and exit code 2."""
    done = subprocess.run(
        [sys.executable, "-m", "loopscope", "settings"],
        capture_output=True,
        text=True,
        check=False,
        env={"LOOPSCOPE_LISTEN": "nowhere"},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("loopscope: LOOPSCOPE_LISTEN is 'nowhere'; allowed:")
