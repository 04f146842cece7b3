"""Our own families as Prometheus text, fast enough not to be felt by the service.

prometheus_client formats every label of every line at every scrape; with thousands of histogram
series that holds the GIL for hundreds of milliseconds. Labels do not change, so here each series
keeps its line beginnings, and the finished text of its last values: a series nothing happened to
costs one comparison. What is left gives the GIL away every few series.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

from prometheus_client.utils import floatToGoString  # pyright: ignore[reportUnknownVariableType]

from loopscope.core.histogram import cumulate
from loopscope.core.merge import Family, Raw
from loopscope.core.metric import Metric
from loopscope.core.page import Labels

Exemplars = Mapping[tuple[str, Labels, int], str]
"""Rendered exemplars by (metric name, label values, bucket)."""

_NONE: Exemplars = MappingProxyType({})

_BREATHE_EVERY = 32
_BREATH_SECONDS = 0.00005
"""Series between two breaths, and how long one is: long enough to hand the GIL over."""


@dataclass(slots=True)
class _Block:
    """One series: the beginnings of its lines, its last values and their text."""

    prefixes: tuple[str, ...]
    raw: Raw
    text: str


class Exposition:
    """Renders families; keeps what it rendered. One thread at a time."""

    def __init__(self, breathe: Callable[[float], None] = time.sleep) -> None:
        self._breathe = breathe
        self._blocks: dict[tuple[str, Labels], _Block] = {}

    def render(
        self, families: Iterable[Family], *, openmetrics: bool = False, exemplars: Exemplars = _NONE
    ) -> str:
        """The families' text: the classic format, or OpenMetrics without its closing ``# EOF``."""
        return "".join(self.pieces(families, openmetrics=openmetrics, exemplars=exemplars))

    def pieces(
        self,
        families: Iterable[Family],
        *,
        openmetrics: bool = False,
        exemplars: Exemplars = _NONE,
    ) -> Iterator[str]:
        """The same in pieces of some ten kilobytes.

        Joining, encoding and sending megabytes at once would each hold the GIL for milliseconds.
        """
        blocks: dict[tuple[str, Labels], _Block] = {}
        output: list[str] = []
        for family in families:
            output.append(_head(family.metric, openmetrics))
            for labels, raw in family.rows.items():
                key = (family.metric.name, labels)
                block = blocks[key] = self._block(key, family, labels, raw)
                text = block.text
                if exemplars and family.metric.kind == "histogram":
                    text = _with_exemplars(text, key, exemplars)
                output.append(text)
                if len(blocks) % _BREATHE_EVERY == 0:
                    yield "".join(output)
                    output.clear()
                    self._breathe(_BREATH_SECONDS)
        self._blocks = blocks  # series that are gone are forgotten
        yield "".join(output)

    def _block(self, key: tuple[str, Labels], family: Family, labels: Labels, raw: Raw) -> _Block:
        known = self._blocks.get(key)
        if known is None:
            prefixes = _prefixes(family.metric, family.label_names, labels)
            return _Block(prefixes, raw, _text(family, prefixes, raw))
        if known.raw != raw:
            known.raw = raw
            known.text = _text(family, known.prefixes, raw)
        return known


def _head(metric: Metric, openmetrics: bool) -> str:
    name = metric.family if openmetrics else metric.name
    help_text = metric.help.replace("\\", r"\\").replace("\n", r"\n")
    if openmetrics:
        help_text = help_text.replace('"', r"\"")
    head = f"# HELP {name} {help_text}\n# TYPE {name} {metric.kind}\n"
    if openmetrics and metric.unit and name.endswith(f"_{metric.unit}"):
        head += f"# UNIT {name} {metric.unit}\n"
    return head


def _prefixes(metric: Metric, names: tuple[str, ...], labels: Labels) -> tuple[str, ...]:
    """What stands before the value on each line of one series."""
    pairs = [f'{name}="{_escape(value)}"' for name, value in zip(names, labels, strict=True)]
    plain = "{" + ",".join(pairs) + "}" if pairs else ""
    if metric.kind != "histogram":
        return (f"{metric.name}{plain} ",)
    start = f"{metric.name}_bucket{{" + "".join(f"{pair}," for pair in pairs)
    bounds = bounds_as_text(metric)
    buckets = [f'{start}le="{bound}"}} ' for bound in bounds]
    return (*buckets, f"{metric.name}_count{plain} ", f"{metric.name}_sum{plain} ")


def _text(family: Family, prefixes: tuple[str, ...], raw: Raw) -> str:
    values = family.values(raw)
    if family.metric.kind == "histogram":
        counts = cumulate(values[:-1])
        values = [*counts, counts[-1], values[-1]]
    return "".join([f"{prefix}{value!r}\n" for prefix, value in zip(prefixes, values, strict=True)])


def _with_exemplars(text: str, key: tuple[str, Labels], exemplars: Exemplars) -> str:
    """``text`` with each bucket's exemplar, where it has one, at the end of its line."""
    lines = text.split("\n")
    for bucket in range(len(lines) - 3):  # not _count, _sum and the empty end
        exemplar = exemplars.get((*key, bucket))
        if exemplar is not None:
            lines[bucket] += exemplar
    return "\n".join(lines)


def bounds_as_text(metric: Metric) -> list[str]:
    """A histogram's bounds as Prometheus writes ``le``, ``+Inf`` included."""
    write = cast("Callable[[float], str]", floatToGoString)
    return [*map(write, metric.bounds), "+Inf"]


def _escape(value: str) -> str:
    if "\\" in value or '"' in value or "\n" in value:
        return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return value
