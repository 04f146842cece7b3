"""``python -m demo_app``: start everything, drive load, say what loopscope saw, stop everything.

Exit status: 0 with figures; 1 if a part failed, no figures were to be had, or they contradict
themselves or the load generator; 130 or 143 when interrupted or terminated before that. With
``--serve`` a signal is the expected end, and others may have sent requests as well: 0.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from demo_app import figures, measure, picture, screen, stack, tour
from demo_app.child import Child, ChildFailedError
from demo_app.load import Load, Plan
from demo_app.scrape import RestartedError, between
from demo_app.seen import Seen

_RATE = 150.0
_SERVING_RATE = 20.0
_CONCURRENCY = 32
_SHOW_EVERY_S = 0.2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit status."""
    options = _options(arguments)
    out = screen.console()
    try:
        return asyncio.run(_until_signalled(out, options))
    except (ChildFailedError, measure.NoFiguresError, RestartedError) as error:
        screen.failed(out, error)
        return 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m demo_app", description="loopscope at work.")
    add = parser.add_argument
    add("--seconds", type=_positive, default=15.0, help="how long to drive load (%(default)g)")
    add("--rate", type=_positive, help=f"requests a second ({_RATE:g}; serving {_SERVING_RATE:g})")
    add("--concurrency", type=_whole, default=_CONCURRENCY, help="requests at a time (%(default)s)")
    add("--serve", action="store_true", help="keep running under gentle load until Ctrl-C")
    add("--admin-port", type=int, default=stack.ADMIN_PORT, help="loopscope's port (%(default)s)")
    add("--picture", type=Path, metavar="FILE", help="also draw what was seen, as an SVG")
    return parser.parse_args(arguments)


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text}")
    return number


def _whole(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 1_000:
        raise argparse.ArgumentTypeError(f"must be between 1 and 1000, not {text}")
    return number


async def _until_signalled(out: Console, options: argparse.Namespace) -> int:
    """Run the demo; the first SIGINT or SIGTERM cancels it, which stops everything in order.

    Later ones are ignored: what is left to do then is bounded in time, and must be done.
    """
    loop = asyncio.get_running_loop()
    demo = asyncio.create_task(_demo(out, options))
    received: list[signal.Signals] = []

    def receive(number: signal.Signals) -> None:
        if not received:
            demo.cancel()
        received.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, receive, number)
    try:
        agreed = await demo
    except asyncio.CancelledError:
        if not received:
            raise
        screen.interrupted(out, received[0])
        return 128 + received[0]
    return 0 if agreed else 1


async def _demo(out: Console, options: argparse.Namespace) -> bool:
    """Whether all figures agree; others may have sent requests to what is kept serving."""
    port = stack.free_port(options.admin_port)
    screen.opening(out, wanted=options.admin_port, given=port)
    async with stack.everything(lambda part: screen.part(out, part), port) as running:
        screen.addresses(out, running, serving=options.serve)
        before = await measure.scrape_when_calm(running.admin_url)
        load = Load(running.service_url, _plan(options))
        async with measure.scraped_meanwhile(running.admin_url):
            await _drive(out, running.service, load, serving=options.serve)
        after = await measure.scrape_when_calm(running.admin_url)
        window = between(before, after)
        seen = Seen(
            window,
            figures.read(window),
            await measure.stalls(running.admin_url),
            await measure.sequential(running.admin_url),
            await measure.pools(running.admin_url),
            await measure.single_stalls(running.admin_url),
        )
        agreed = screen.results(out, running, load, seen)
        if not options.serve:
            screen.frozen(out, await tour.freezes(running.service_url, running.admin_url))
        if options.picture is not None:
            options.picture.write_text(picture.draw(seen))
    screen.closing(out, running, serving=options.serve)
    return agreed or options.serve


def _plan(options: argparse.Namespace) -> Plan:
    rate = options.rate or (_SERVING_RATE if options.serve else _RATE)
    return Plan(rate, options.concurrency, math.inf if options.serve else options.seconds)


async def _drive(out: Console, service: Child, load: Load, *, serving: bool) -> None:
    """Run the load to its end; when serving, being cancelled is that end.

    Raises ``ChildFailedError`` if the service ends before the load does.
    """
    sending = asyncio.create_task(load.run())
    try:
        await _watch(out, service, load, sending)
    except asyncio.CancelledError:
        if not serving:
            raise
        load.finish()
        await sending
    finally:
        sending.cancel()


async def _watch(out: Console, service: Child, load: Load, sending: asyncio.Task[None]) -> None:
    with screen.load_display(out, load) as show:
        while not sending.done():
            await asyncio.wait((sending,), timeout=_SHOW_EVERY_S)
            show()
            if service.ended:
                raise service.failure("ended under load")
    await sending


if __name__ == "__main__":
    sys.exit(main())
