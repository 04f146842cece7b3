"""One uvicorn server in a process of its own, on a socket the parent has already bound.

``python -m demo_app.worker demo_app.service:app 5`` serves the app on file descriptor 5. The
parent picked the port by binding it, so nobody else can take it in between.
"""

from __future__ import annotations

import socket
import sys

import uvicorn

from demo_app import parent

# An open stream may hold up the end of the demo by this much, no more.
_GRACE_S = 3


def main(app: str, descriptor: int) -> None:
    """Serve ``app`` (``module:name``) until the parent goes or a signal comes."""
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        lifespan="on",
        log_level="warning",
        access_log=False,
        # Longer than the load generator keeps a connection, so it never meets a closed one.
        timeout_keep_alive=60,
        timeout_graceful_shutdown=_GRACE_S,
    )
    server = uvicorn.Server(config)

    def stop() -> None:
        server.should_exit = True

    parent.when_gone(stop)
    server.run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
