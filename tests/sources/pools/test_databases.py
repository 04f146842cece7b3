"""``databases`` has pools of other libraries beneath it, which are measured as such."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import databases
import pytest

from tests.servers import Address
from tests.sources.pools.crowd import ROUTE, fifty_of_five, held, site_of, started

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]


@pytest.fixture(params=["db.asyncpg", "db.aiomysql"])
def backend(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A kind of pool, and the URL by which ``databases`` makes one."""
    kind: str = request.param
    if kind == "db.aiomysql":
        address: Address = request.getfixturevalue("mariadb")
        return kind, address.url("mysql+aiomysql")
    url: str = request.getfixturevalue("postgres")
    return kind, url.replace("postgresql:", "postgresql+asyncpg:")


async def test_the_pool_beneath_is_measured(backend: tuple[str, str]) -> None:
    """With true figures, and as what it is: there is no other pool, and nothing without one."""
    kind, url = backend
    service = await started(kind)
    async with databases.Database(url, min_size=5, max_size=5) as database:

        @asynccontextmanager
        async def borrowed() -> AsyncIterator[None]:
            async with database.connection():
                yield

        await fifty_of_five(service, borrowed)
        (_,) = service.values("capacity", "pool")
        assert len(service.values("in_use", "pool")) == 1


async def test_the_line_is_that_of_the_service(backend: tuple[str, str]) -> None:
    """Not one of the library's, for what is in use and for what is made."""
    kind, url = backend
    service = await started(kind)
    async with databases.Database(url, min_size=1, max_size=5) as database:

        async def work() -> None:
            async with database.connection(), database.transaction():
                first = held(kind)
                assert [site_of(use) for use in first] == [f"{here(1)} {work.__qualname__}"]
                await helper()

        async def helper() -> None:
            await database.execute("select 1")

        def here(after: int) -> str:
            line = inspect.getsourcelines(work)[1] + after
            return f"tests/sources/pools/test_databases.py:{line}"

        await service.request(work)
        assert not held(kind)
        assert service.figure("use_seconds_count") == 1
        assert service.figure("creations_total", **ROUTE) == 0
        assert [site for site in service.values("creations_total", "site") if "test_da" in site]
