"""Runtime observability for asyncio and ASGI services.

``app.add_middleware(Loopscope)`` measures a service; ``http://127.0.0.1:9464/metrics`` publishes
what was measured.
"""

# What is public is imported by whoever asks for it. Beside services there are processes of ours
# that need little of it: commands, and a sentinel that is to be there within a moment.

from importlib import import_module
from typing import TYPE_CHECKING, Any

from loopscope._version import __version__

if TYPE_CHECKING:
    from loopscope.admin.app import metrics_app
    from loopscope.asgi import Loopscope
    from loopscope.settings import Settings, SettingsError
    from loopscope.sources.pools.watched import WatchedPool, watch_pool

__all__ = [
    "Loopscope",
    "Settings",
    "SettingsError",
    "WatchedPool",
    "__version__",
    "metrics_app",
    "watch_pool",
]

_HOMES = {
    "Loopscope": "loopscope.asgi",
    "Settings": "loopscope.settings",
    "SettingsError": "loopscope.settings",
    "WatchedPool": "loopscope.sources.pools.watched",
    "metrics_app": "loopscope.admin.app",
    "watch_pool": "loopscope.sources.pools.watched",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(home), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
