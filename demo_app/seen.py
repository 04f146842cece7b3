"""All that a run has shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from demo_app.figures import Figures
from demo_app.scrape import Window


@dataclass(frozen=True)
class Seen:
    """The window between two scrapes, read; stalls by place; what awaits in sequence; pools.

    ``single_stalls`` are the same as ``stalls``, one by one.
    """

    window: Window
    figures: Figures
    stalls: Sequence[Mapping[str, Any]]
    sequential: Sequence[Mapping[str, Any]] = ()
    pools: Sequence[Mapping[str, Any]] = ()
    single_stalls: Sequence[Mapping[str, Any]] = ()
