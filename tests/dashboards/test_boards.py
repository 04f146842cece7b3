"""Boards: current, made of metrics that exist, and complete."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dashboards.generate import BOARDS, stale
from loopscope.catalogue import BY_NAME

_NAME = re.compile(r"\b((?:http_server|asyncio|loopscope|process|cpython)_[a-z_]+)(?:\{([^}]*)\})?")
_LABEL = re.compile(r"([a-z_]+)\s*(?:=~|!~|!=|=)")
_LEGEND = re.compile(r"\{\{(\w+)\}\}")
_SUFFIXES = ("_bucket", "_sum", "_count")
_TARGET_LABELS = {"job", "instance", "le"}
_NOT_METRICS = {label for metric in BY_NAME.values() for label in metric.labels}

PANELS = [
    pytest.param(panel, id=f"{name}-{panel['title']}")
    for name, board in BOARDS.items()
    for panel in board()["panels"]
    if panel["type"] != "row"
]


def queries(panel: dict[str, Any]) -> list[str]:
    return [target["expr"] for target in panel["targets"]]


def base_name(name: str) -> str:
    for suffix in _SUFFIXES:
        if name.endswith(suffix) and name.removesuffix(suffix) in BY_NAME:
            return name.removesuffix(suffix)
    return name


def test_committed_boards_are_what_their_code_makes() -> None:
    """Whoever changes a board commits its JSON with it."""
    assert stale() == []


@pytest.mark.parametrize("name", BOARDS)
def test_panels_have_ids_of_their_own(name: str) -> None:
    """Grafana loses panels that share an id."""
    ids = [panel["id"] for panel in BOARDS[name]()["panels"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", BOARDS)
def test_panels_do_not_overlap(name: str) -> None:
    """Every cell of the grid belongs to one panel at most."""
    cells = [
        (x, y)
        for panel in BOARDS[name]()["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_what_it_means(panel: dict[str, Any]) -> None:
    """Title, description, unit, data source variable and lettered targets are there."""
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"
    assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH")[
        : len(queries(panel))
    ]


@pytest.mark.parametrize("panel", PANELS)
def test_metrics_and_labels_exist(panel: dict[str, Any]) -> None:
    """A board names nothing the catalogue does not have."""
    for query in queries(panel):
        found = [match for match in _NAME.findall(query) if match[0] not in _NOT_METRICS]
        assert found
        for name, selector in found:
            metric = BY_NAME[base_name(name)]
            assert set(_LABEL.findall(selector)) <= {*metric.labels, *_TARGET_LABELS}


@pytest.mark.parametrize("panel", PANELS)
def test_counters_are_only_seen_as_rates(panel: dict[str, Any]) -> None:
    """The absolute value of a counter says when the process began, nothing else."""
    for query in queries(panel):
        for name, _ in _NAME.findall(query):
            metric = BY_NAME.get(base_name(name))
            if metric is not None and metric.kind != "gauge":
                assert re.search(rf"rate\({name}\{{[^}}]*\}}\[\$__rate_interval\]\)", query)


@pytest.mark.parametrize("panel", PANELS)
def test_legends_name_labels_that_survive(panel: dict[str, Any]) -> None:
    """A label in a legend is one the query groups by, or the series' own."""
    for target in panel["targets"]:
        grouped = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", target["expr"]))))
        for label in _LEGEND.findall(target["legendFormat"]):
            assert label in (grouped or {"instance"})
