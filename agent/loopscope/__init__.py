"""Runtime observability for asyncio and ASGI services.

``app.add_middleware(Loopscope)`` measures a service; ``http://127.0.0.1:9464/metrics`` publishes
what was measured.
"""

from loopscope._version import __version__
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
