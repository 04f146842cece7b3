"""The observer observed: what loopscope costs, where it failed, how many series it keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from loopscope.core.histogram import Histogram, Number
from loopscope.core.metric import STEP_BOUNDS, Metric
from loopscope.core.page import Page

BUILD_INFO = Metric(
    "loopscope_build_info",
    "gauge",
    "Always 1; the labels say which loopscope, Python and event loop this is.",
    ("version", "python_version", "loop"),
)
OVERHEAD = Metric(
    "loopscope_agent_overhead_seconds_total",
    "counter",
    "Seconds loopscope itself took, by part: requests is the recording of finished requests "
    "(estimated from one in 256), awaits is looking where they waited, watchdog is CPU time of the "
    "thread that watches event loops and publishes pools, scrape that of reading and rendering.",
    ("part",),
    unit="seconds",
)
ERRORS = Metric(
    "loopscope_agent_errors_total",
    "counter",
    "Failures inside loopscope, by part; the service was not affected.",
    ("part",),
)
SERIES = Metric(
    "loopscope_agent_series",
    "gauge",
    "Series this worker's page holds.",
    per_worker=True,
)
FOLDED = Metric(
    "loopscope_agent_series_folded_total",
    "counter",
    "Observations recorded in an overflow series because the series budget was spent.",
)
SCRAPE = Metric(
    "loopscope_agent_scrape_seconds",
    "histogram",
    "Wall time of reading all pages and rendering them, up to the scrape before this one.",
    unit="seconds",
    bounds=STEP_BOUNDS,
)

METRICS = (BUILD_INFO, OVERHEAD, ERRORS, SERIES, FOLDED, SCRAPE)


class SelfSource:
    """Publishes what the agent knows of itself; the arguments are asked at every refresh."""

    def __init__(
        self,
        page: Page,
        *,
        overhead: Callable[[], Mapping[str, float]],
        errors: Callable[[], Mapping[str, int]],
        folded: Callable[[], int],
        series: Callable[[], int],
    ) -> None:
        self._page = page
        self._overhead = overhead
        self._errors = errors
        self._folded = folded
        self._series = series
        self._by_part: dict[str, Number] = {}
        self._parts: dict[str, Number] = {}
        self._scraping = self._number(OVERHEAD, "scrape")
        self._series_count = self._number(SERIES)
        self._folded_count = self._number(FOLDED)
        self._scrape = Histogram(page.slots, page.allocate(SCRAPE), SCRAPE.bounds)

    def describe(self, version: str, python_version: str, loop: str) -> None:
        """Say once which loop is being observed."""
        self._number(BUILD_INFO, version, python_version, loop).set(1.0)

    def scraped(self, wall: float, cpu: float) -> None:
        """Note what one scrape took, in seconds."""
        self._scrape.observe(wall)
        self._scraping.add(cpu)

    def refresh(self) -> None:
        for part, seconds in self._overhead().items():
            if part not in self._parts:
                self._parts[part] = self._number(OVERHEAD, part)
            self._parts[part].set(seconds)
        self._folded_count.set(self._folded())
        self._series_count.set(self._series())
        for part, count in self._errors().items():
            if part not in self._by_part:
                self._by_part[part] = self._number(ERRORS, part)
            self._by_part[part].set(count)

    def _number(self, metric: Metric, *labels: str) -> Number:
        return Number(self._page.slots, self._page.allocate(metric, labels))
