"""What ``/metrics`` says: our own rendering held against prometheus_client's."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from loopscope.catalogue import BY_NAME, CATALOGUE
from loopscope.core.clock import Clock, FakeTime
from loopscope.core.merge import Family, ReadPage, merge
from loopscope.core.page import Page, PageReader
from loopscope.exporters.exposition import Exposition
from loopscope.exporters.prometheus import LoopscopeCollector, MetricsPage

GOLDEN = Path(__file__).with_name("golden.txt")
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def families_of(page: Page) -> list[Family]:
    reader = PageReader()
    reader.update(page.view)
    return merge([ReadPage(reader, page.view)])


def described(family: Any) -> Any:
    """All that a parsed family says, without regard to the order of its lines."""
    samples = sorted((s.name, sorted(s.labels.items()), s.value) for s in family.samples)
    return family.name, family.documentation, family.type, samples


@pytest.fixture
def whole_catalogue() -> Iterator[Page]:
    """A page with one series of every metric there is, each slot with a number of its own."""
    page = Page.anonymous(FakeTime().clock(), capacity=1 << 20)
    for number, metric in enumerate(CATALOGUE):
        labels = [f"{label}-{number}" for label in metric.labels]
        base = page.allocate(metric, labels)
        for slot in range(metric.slot_count):
            page.slots[base + slot] = number + slot
    yield page
    page.close()


def test_the_exposition_is_what_it_was(whole_catalogue: Page) -> None:
    """Names, labels, help and order are a contract: a change shows up in the golden file."""
    assert Exposition().render(families_of(whole_catalogue)) == GOLDEN.read_text()


def test_our_rendering_says_what_prometheus_client_would(whole_catalogue: Page) -> None:
    """The fast renderer and prometheus_client's describe the same families and samples."""
    registry = CollectorRegistry()
    registry.register(LoopscopeCollector(lambda: families_of(whole_catalogue)))
    ours = Exposition().render(families_of(whole_catalogue))
    theirs = generate_latest(registry).decode()
    assert list(map(described, parse(ours))) == list(map(described, parse(theirs)))


@given(st.lists(st.text(), min_size=2, max_size=2), st.floats(allow_nan=False, min_value=0))
def test_any_label_value_survives(labels: list[str], value: float) -> None:
    """Quotes, backslashes, newlines and any other character in a label value are read back."""
    page = Page.anonymous(Clock(), capacity=1 << 16)
    metric = BY_NAME["http_server_active_requests"]
    page.slots[page.allocate(metric, labels)] = value
    (family,) = parse(Exposition().render(families_of(page)))
    (sample,) = family.samples
    assert [sample.labels[name] for name in metric.labels] == labels
    assert sample.value == value


def test_a_label_that_is_no_text_does_not_cost_the_page() -> None:
    """Half a surrogate pair cannot be encoded: it is replaced, and the scrape succeeds."""
    page = Page.anonymous(Clock(), capacity=1 << 16)
    page.allocate(BY_NAME["http_server_active_requests"], ("\ud800", "http"))
    body, _ = MetricsPage(lambda: families_of(page)).render("")
    (family,) = parse(b"".join(body).decode())
    assert [sample.labels["http_request_method"] for sample in family.samples] == ["?"]


def test_unchanged_series_are_not_rendered_again(whole_catalogue: Page) -> None:
    """A second scrape shows new values where there are any and the same text elsewhere."""
    exposition = Exposition()
    before = exposition.render(families_of(whole_catalogue)).splitlines()
    whole_catalogue.slots[whole_catalogue.used // 8 - 1] += 1
    after = exposition.render(families_of(whole_catalogue)).splitlines()
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


def test_openmetrics_parses_with_exemplars(whole_catalogue: Page) -> None:
    """OpenMetrics output is accepted by a strict parser and carries the trace of a bucket."""
    duration = BY_NAME["http_server_request_duration_seconds"]
    families = families_of(whole_catalogue)
    (labels,) = next(f for f in families if f.metric == duration).rows
    exemplar = (0.007, 1700000000.0, 0xABC, 0xDEF)
    page = MetricsPage(lambda: families, exemplars=lambda: {(duration.name, labels, 1): exemplar})
    body, content_type = page.render(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    parsed = parse_openmetrics(b"".join(body).decode())  # type: ignore[no-untyped-call]
    samples = [s for family in parsed for s in family.samples]
    (found,) = [s for s in samples if s.exemplar]
    assert found.labels["le"] == "0.01"
    assert found.exemplar.labels["trace_id"] == f"{0xABC:032x}"


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_users_metrics_appear_on_the_same_page(whole_catalogue: Page, accept: str) -> None:
    """What the service registers is published too; families we publish ourselves are not twice."""
    registry = CollectorRegistry()
    Counter("orders", "Orders.", registry=registry).inc()
    Counter("process_cpu_seconds", "A rival.", registry=registry)
    page = MetricsPage(lambda: families_of(whole_catalogue), user_registry=registry)
    body = b"".join(page.render(accept)[0]).decode()
    assert "orders_total 1.0" in body
    assert body.count("# TYPE process_cpu_seconds") == 1


@pytest.mark.skipif(which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_say(whole_catalogue: Page) -> None:
    """``promtool check metrics`` accepts every name, help and unit but one of the conventions'."""
    text = Exposition().render(families_of(whole_catalogue))
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    complaints = checked.stderr.splitlines()
    assert [line.split()[0] for line in complaints] == ["db_client_connection_count"], complaints
