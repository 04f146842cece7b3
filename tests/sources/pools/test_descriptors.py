"""File descriptors as a pool: what is open against what may be."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import psutil
import pytest

from loopscope.sources.pools import descriptors
from loopscope.sources.pools.descriptors import NAME, Descriptors
from tests.sources.pools.book import Published


@pytest.fixture
def published() -> Published:
    found = Published()
    found.lookouts.append(Descriptors(found.book))
    return found


@pytest.fixture(params=["at once", "listed"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that tell the number, and those that only list."""
    if request.param == "listed":
        monkeypatch.setattr(descriptors, "open_fds_at_once", lambda: None)


@pytest.fixture
def limit() -> Iterator[int]:
    """A soft limit of its own, put back afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, hard))
    yield 500
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("either_way")
def test_fifty_files_more_are_fifty_more_in_use(published: Published) -> None:
    """And closed ones are none; the figure is as exact as the kernel's own."""
    published.refresh()
    before = published.pool(NAME)["in_use"]
    with ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(Path(os.devnull).open())
        published.refresh(later=descriptors._PAUSE)
        assert published.pool(NAME)["in_use"] == before + 50
    published.refresh(later=descriptors._PAUSE)
    assert published.pool(NAME)["in_use"] == before


def test_the_soft_limit_is_what_may_be_open(published: Published, limit: int) -> None:
    """It is the soft limit that hurts, and a service may move it while it runs."""
    published.refresh()
    assert published.pool(NAME)["capacity"] == limit
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    published.refresh()
    assert published.pool(NAME)["capacity"] == 400


def test_without_a_limit_there_is_no_capacity(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unlimited is not a number."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    published.refresh()
    assert set(published.pool(NAME)) == {"in_use"}


def test_listing_is_done_rarely(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where counting means listing, a scrape a second does not list every second."""
    monkeypatch.setattr(descriptors, "open_fds_at_once", lambda: None)
    published.refresh()
    before = published.pool(NAME)["in_use"]
    with Path(os.devnull).open():
        published.refresh(later=descriptors._PAUSE / 2)
        assert published.pool(NAME)["in_use"] == before


def test_when_there_is_none_left_to_count_with_all_are_in_use(
    published: Published, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """The moment the figure is there for is no moment to fail in."""

    def refused(_: object) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(descriptors, "open_fds_at_once", lambda: None)
    monkeypatch.setattr(psutil.Process, "num_fds", refused)
    published.refresh()
    assert published.pool(NAME)["in_use"] == limit
