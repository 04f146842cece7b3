"""The names of database pools, beside those that OpenTelemetry's own package spells out."""

from __future__ import annotations

import pytest
from opentelemetry.semconv._incubating.attributes import db_attributes
from opentelemetry.semconv._incubating.metrics import db_metrics

from loopscope.core.metric import Metric
from loopscope.sources.pools import semconv

CONVENTIONS = {
    semconv.COUNT: (db_metrics.DB_CLIENT_CONNECTION_COUNT, ""),
    semconv.MAX: (db_metrics.DB_CLIENT_CONNECTION_MAX, ""),
    semconv.PENDING: (db_metrics.DB_CLIENT_CONNECTION_PENDING_REQUESTS, ""),
    semconv.TIMEOUTS: (db_metrics.DB_CLIENT_CONNECTION_TIMEOUTS, "_total"),
    semconv.CREATE_TIME: (db_metrics.DB_CLIENT_CONNECTION_CREATE_TIME, "_seconds"),
    semconv.WAIT_TIME: (db_metrics.DB_CLIENT_CONNECTION_WAIT_TIME, "_seconds"),
    semconv.USE_TIME: (db_metrics.DB_CLIENT_CONNECTION_USE_TIME, "_seconds"),
}
"""Each metric's name in the conventions, and what Prometheus adds to it."""


@pytest.mark.parametrize("metric", semconv.METRICS, ids=lambda metric: metric.name)
def test_names_and_labels_are_the_conventions(metric: Metric) -> None:
    """As OpenTelemetry's exporter for Prometheus would write them."""
    name, suffix = CONVENTIONS[metric]
    assert metric.name == name.replace(".", "_") + suffix
    labels = [db_attributes.DB_CLIENT_CONNECTION_POOL_NAME]
    if metric is semconv.COUNT:
        labels.append(db_attributes.DB_CLIENT_CONNECTION_STATE)
    assert metric.labels == tuple(label.replace(".", "_") for label in labels)


def test_states_are_the_conventions() -> None:
    """Idle and used, in the conventions' words."""
    states = {more[0] for metric, more in semconv._FROM.values() if metric is semconv.COUNT}  # noqa: SLF001
    assert states == {each.value for each in db_attributes.DbClientConnectionStateValues}
