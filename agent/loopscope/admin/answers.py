"""What a worker serves its siblings, as an ASGI application: each part of ``Own``, as JSON.

Made where it is asked for, on the admin thread's own loop: were it made in the thread that makes
what is served to the outside, two workers that ask each other would wait for each other.
"""

from __future__ import annotations

from json import dumps

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from loopscope.admin.app import Console
from loopscope.admin.own import Own, UnknownPartError
from loopscope.core.faults import Faults


def answers(own: Own, faults: Faults) -> Console:
    """The application. Whatever fails in it is reported to ``faults`` and answered with a 500."""

    async def answer(request: Request) -> Response:
        try:
            document = own.tell(request.path_params["part"], request.query_params)
            return Response(dumps(document), media_type="application/json")
        except UnknownPartError as error:
            return PlainTextResponse(f"{error}\n", status_code=404)
        except Exception as error:
            faults.report("admin", error)
            return PlainTextResponse(f"{error}\n", status_code=500)

    return Console(routes=[Route("/own/{part}", answer)])
