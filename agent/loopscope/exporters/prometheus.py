"""Families for prometheus_client, and the ``/metrics`` page made of ours and the user's own.

prometheus_client stays in charge of registries and content negotiation: ``LoopscopeCollector`` is
an ordinary custom collector and may be registered anywhere. The page renders our families itself
(see ``exposition``) and lets prometheus_client render the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import Metric as PrometheusFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from loopscope.core.histogram import cumulate
from loopscope.core.merge import Family
from loopscope.core.page import Labels
from loopscope.exporters.carried import NOTHING, Carried, Exemplars, SideBySide, newest
from loopscope.exporters.exposition import Exposition, bounds_as_text

_OPENMETRICS = "application/openmetrics-text"
_EOF = b"# EOF\n"


class LoopscopeCollector(Collector):
    """Our families as prometheus_client knows them; ``families`` reads them anew."""

    def __init__(self, families: Callable[[], list[Family]]) -> None:
        self._families = families

    def collect(self) -> Iterable[PrometheusFamily]:
        return [_converted(family) for family in self._families()]


def _converted(family: Family) -> PrometheusFamily:
    metric = family.metric
    names = list(family.label_names)
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=names)
        bounds = bounds_as_text(metric)
        for labels, raw in family.rows.items():
            values = family.values(raw)
            buckets = list(zip(bounds, cumulate(values[:-1]), strict=True))
            histogram.add_metric(list(labels), buckets, values[-1])
        return histogram
    single: CounterMetricFamily | GaugeMetricFamily
    if metric.kind == "counter":
        single = CounterMetricFamily(metric.family, metric.help, labels=names)
    else:
        single = GaugeMetricFamily(metric.name, metric.help, labels=names)
    for labels, raw in family.rows.items():
        single.add_metric(list(labels), family.values(raw)[0])
    return single


class _Others(Collector):
    """A user's registry without the families we publish ourselves (``process_*``, our own)."""

    def __init__(self, registry: Collector, ours: set[str]) -> None:
        self._registry = registry
        self._ours = ours

    def collect(self) -> Iterable[PrometheusFamily]:
        return (family for family in self._registry.collect() if family.name not in self._ours)


class MetricsPage:
    """Makes the body of ``/metrics``. One thread at a time.

    ``user_registry`` is rendered below our own families; without one, what workers told of theirs.
    """

    def __init__(
        self,
        families: Callable[[], list[Family]],
        *,
        exemplars: Callable[[], Exemplars] = dict,
        user_registry: CollectorRegistry | None = None,
    ) -> None:
        self._families = families
        self._exemplars = exemplars
        self._user_registry = user_registry
        self._exposition = Exposition()

    def render(self, accept: str, carried: Carried = NOTHING) -> tuple[list[bytes], str]:
        """Body, in pieces, and content type for an ``Accept`` header; with what others told."""
        encode, content_type = choose_encoder(accept)
        openmetrics = content_type.startswith(_OPENMETRICS)
        families = self._families()
        several = (self._exemplars(), carried.exemplars)
        exemplars = _rendered(newest(several)) if openmetrics else {}
        text = self._exposition.pieces(families, openmetrics=openmetrics, exemplars=exemplars)
        # A label no encoding can write must not cost the whole page.
        body = [piece.encode("utf-8", "replace") for piece in text]
        users = self._user_registry or (SideBySide(carried.users) if carried.users else None)
        if users is not None:
            ours = {family.metric.family for family in families}
            body.append(encode(_Others(users, ours)))
        elif openmetrics:
            body.append(_EOF)
        return body, content_type


def is_openmetrics(accept: str) -> bool:
    """Whether OpenMetrics, which has exemplars, is the answer to this ``Accept`` header."""
    return choose_encoder(accept)[1].startswith(_OPENMETRICS)


def _rendered(exemplars: Exemplars) -> dict[tuple[str, Labels, int], str]:
    return {
        key: f' # {{trace_id="{trace_id:032x}",span_id="{span_id:016x}"}} {value!r} {wall:.3f}'
        for key, (value, wall, trace_id, span_id) in exemplars.items()
    }
