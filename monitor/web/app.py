"""The HTTP endpoints: /metrics, /livez, /readyz, and POST /v1/events.

They run in a thread of their own and only look at what the loop has put on the :class:`Board`; the
loop never waits for them.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from monitor import __version__
from monitor.exposition import CONTENT_TYPE
from monitor.sources.http import SHOWN_REJECTS, Inbox, Post, Receipt, Refused

logger = logging.getLogger(__name__)

LOOP_STUCK_SECONDS = 60
"""The service is no longer alive when its loop has not turned for this long."""
_RECEIPT_SECONDS = 30
_INGEST_CODES = (200, 400, 401, 404, 413, 415, 422, 503)
"""Answers to posted events; counters of all of them are there from the start."""
_BODY_SECONDS = 60


@dataclass(slots=True)
class Board:
    """What the loop shows to the outside. Fields are replaced as a whole, never changed in place.

    ``groups`` and ``health`` are the two halves of /metrics; ``heartbeat`` is when the loop last turned
    (seconds, monotonic clock); ``waiting_for`` says in sentences why the service is not ready yet.
    """

    groups: bytes = b""
    health: bytes = b""
    heartbeat: float = 0.0
    waiting_for: tuple[str, ...] = ("the service starts",)
    ingest_codes: Counter[int] = field(default_factory=Counter)


def make_app(
    board: Board,
    *,
    monotonic: Callable[[], float],
    now_ms: Callable[[], int],
    metrics_token: str | None = None,
    inbox: Inbox | None = None,
    ingest_token: str | None = None,
    max_body_bytes: Mapping[str, int] | None = None,
) -> Starlette:
    """The application.

    Parameters
    ----------
    board
        What to show.
    monotonic, now_ms
        Clocks: seconds that never jump, and milliseconds since 1970.
    metrics_token, ingest_token
        Bearer tokens that /metrics and /v1/events need; without the second nothing can be posted.
    inbox
        Where posted events go.
    max_body_bytes
        Largest request by the name of the source; these are the sources one can post to.
    """
    sources = dict(max_body_bytes or {})
    if sources:
        board.ingest_codes.update(dict.fromkeys(_INGEST_CODES, 0))

    async def index(request: Request) -> Response:
        lines = [f"fairness-monitor {__version__}", "", "GET  /metrics", "GET  /livez", "GET  /readyz"]
        lines += ["POST /v1/events"] if sources else []
        return PlainTextResponse("\n".join(lines) + "\n")

    async def metrics(request: Request) -> Response:
        if metrics_token is not None and not _authorized(request, metrics_token):
            return _problem(401, "/metrics needs the token of server.metrics_token")
        return Response(board.groups + board.health, headers={"content-type": CONTENT_TYPE})

    async def livez(request: Request) -> Response:
        age = monotonic() - board.heartbeat
        alive = age < LOOP_STUCK_SECONDS
        status = "ok" if alive else f"the loop has not turned for {age:.0f} s"
        return JSONResponse({"status": status, "heartbeat_age_seconds": round(age, 1)}, 200 if alive else 503)

    async def readyz(request: Request) -> Response:
        waiting = board.waiting_for
        status = "waiting" if waiting else "ok"
        return JSONResponse({"status": status, "waiting_for": list(waiting)}, 503 if waiting else 200)

    async def events(request: Request) -> Response:
        response = await _ingest(request)
        board.ingest_codes[response.status_code] += 1
        return response

    async def _ingest(request: Request) -> Response:
        if inbox is None or ingest_token is None or not sources:
            return _problem(
                404, "this monitor takes no posted events: give a source http: {} in its configuration"
            )
        if not _authorized(request, ingest_token):
            return _problem(
                401, "posting events needs the header Authorization: Bearer and server.ingest_token"
            )
        source = request.query_params.get("source") or (next(iter(sources)) if len(sources) == 1 else "")
        if source not in sources:
            return _problem(
                404, f"say which source the events are of: ?source= with one of {', '.join(sources)}"
            )
        if request.headers.get("content-encoding", "identity") != "identity":
            return _problem(415, "send the events without content-encoding")
        key = request.headers.get("idempotency-key")
        if key is not None and not 1 <= len(key) <= 255:
            return _problem(400, "an Idempotency-Key has 1 to 255 characters")
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                body = await _body(request, sources[source])
            if not body.strip():
                return _problem(400, "the request holds no events: send one JSON event per line")
            receipt = inbox.submit(Post(source, body, now_ms()), key)
        except Refused as refused:
            return _problem(refused.code, str(refused))
        except TimeoutError:
            return _problem(408, f"the request did not arrive within {_BODY_SECONDS} seconds")
        except ClientDisconnect:
            return _problem(400, "the request was cut off")
        try:
            done = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(receipt)), _RECEIPT_SECONDS)
        except TimeoutError:
            return _problem(
                503, "the events wait longer than usual; send them again with the same Idempotency-Key"
            )
        return JSONResponse(_receipt(done))

    return Starlette(
        routes=[
            Route("/", index),
            Route("/metrics", metrics),
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/v1/events", events, methods=["POST"]),
        ],
        middleware=[Middleware(GZipMiddleware, minimum_size=10_000, compresslevel=1)],
        exception_handlers={404: _not_found, 405: _not_allowed, 500: _failed},
    )


async def _body(request: Request, limit: int) -> bytes:
    """The body; raises Refused (413) as soon as it is known to be too large."""
    too_large = Refused(413, f"the request is larger than {limit} bytes; send the events in several")
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > limit:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise too_large
        parts.append(part)
    return b"".join(parts)


def _authorized(request: Request, token: str) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())


def _receipt(receipt: Receipt) -> dict[str, object]:
    shown = [
        {"line": r.position, "element": r.element, "reason": str(r.reason), "message": r.message}
        for r in receipt.rejects[:SHOWN_REJECTS]
    ]
    return {
        "read": receipt.read,
        "accepted": receipt.accepted,
        "rejected": receipt.read - receipt.accepted,
        "rejects": shown,
    }


def _problem(code: int, message: str) -> Response:
    headers = {
        401: {"www-authenticate": "Bearer"},
        503: {"retry-after": "1"},
        408: {"connection": "close"},
        413: {"connection": "close"},
    }
    return JSONResponse({"error": message}, code, headers.get(code))


async def _not_found(request: Request, error: Exception) -> Response:
    return _problem(404, "there is nothing here; see /")


async def _not_allowed(request: Request, error: Exception) -> Response:
    return _problem(405, "this method is not for this path; see /")


async def _failed(request: Request, error: Exception) -> Response:
    logger.error("a request failed", exc_info=error)
    return _problem(500, "the request failed; the log says why")
