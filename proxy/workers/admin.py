"""The admin endpoint of several workers: their figures as one, and everything else asked of one of them.

What lives here: the parent's application. What may not: the paths of a single proxy (``proxy.observe.admin``), which
are all passed on but for those that are about all workers.
"""

from __future__ import annotations

import json
from typing import Any

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from proxy.control.siblings import worker_of
from proxy.workers.http import PassedOn, question_of, whole
from proxy.workers.team import PATIENCE, Team, Worker
from proxy.workers.totals import render

LARGEST = 64 * 1024  # bytes of a request's body
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"]


def team_app(team: Team) -> Starlette:
    """The ASGI application of the parent: the same paths as a proxy's own (``admin_app``)."""

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:
        reason = await _unready(team, request)
        if reason is None:
            return JSONResponse({"ready": True})
        return JSONResponse({"ready": False, "reason": reason}, status_code=503)

    async def metrics(request: Request) -> Response:
        body, content_type = render(await team.figures(), request.headers.get("accept", ""))
        # Set by hand: Starlette would add a charset to a content type that already names one.
        return Response(body, headers={"content-type": content_type})

    async def topology(request: Request) -> Response:
        question = await question_of(request)
        for worker in _asked(team):
            found = await whole(worker.link, question, PATIENCE)
            if found is not None and found[0] == 200:
                return JSONResponse({**json.loads(found[1]), "workers": team.describe()})
        return _nobody()

    async def trace(request: Request) -> Response:
        worker = team.workers.get(worker_of(request.path_params["client"]))
        if worker is None:
            return JSONResponse({"error": "no write of this client was timed"}, status_code=404)
        return PassedOn(worker.link, await question_of(request), _nobody())

    async def elsewhere(request: Request) -> Response:
        if _length(request) > LARGEST:
            return PlainTextResponse("the request is too large\n", status_code=413)
        worker = next(iter(_asked(team)), None)
        return _nobody() if worker is None else PassedOn(worker.link, await question_of(request), _nobody())

    handlers = {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics, "/topology": topology}
    routes = [Route(path, handler) for path, handler in handlers.items()]
    everything = Route("/{path:path}", elsewhere, methods=METHODS)
    return Starlette(routes=[*routes, Route("/traces/{client:int}", trace), everything])


def _asked(team: Team) -> list[Worker]:
    """Those who may know, the likeliest first."""
    return sorted(team.serving or team.workers.values(), key=lambda worker: not worker.answers)


def _nobody() -> Response:
    return JSONResponse({"error": "no worker answers; try again"}, status_code=503)


def _length(request: Request) -> float:
    """Bytes of the body; one that is not told beforehand may be any."""
    if "transfer-encoding" in request.headers:
        return float("inf")
    length = request.headers.get("content-length", "0")
    return int(length) if length.isascii() and length.isdigit() else float("inf")


async def _unready(team: Team, request: Request) -> str | None:
    """Why clients are not served, None if they are: every worker that accepts some must be able to."""
    question = await question_of(request)
    reasons: dict[int, Any] = {}

    async def one(worker: Worker) -> None:
        found = await whole(worker.link, question, PATIENCE)
        if found is None:
            reasons[worker.number] = f"worker {worker.number} does not answer"
        elif found[0] != 200:
            reasons[worker.number] = json.loads(found[1])["reason"]

    async with trio.open_nursery() as nursery:
        for worker in _asked(team):
            nursery.start_soon(one, worker)
    if reasons:
        return str(reasons[min(reasons)])
    return None if team.serving else "no worker accepts clients yet"
