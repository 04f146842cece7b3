"""Setting OpenTelemetry's global provider more than once."""

from __future__ import annotations

from typing import Any

from opentelemetry import trace
from opentelemetry.util._once import Once


def set_provider(provider: Any) -> None:
    """OpenTelemetry lets a provider be set once; tests need it more often."""
    trace._TRACER_PROVIDER_SET_ONCE = Once()
    trace._TRACER_PROVIDER = provider
