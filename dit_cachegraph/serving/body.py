"""The body of a request, read within bounds of size and time."""

import asyncio

from fastapi import Request
from starlette.requests import ClientDisconnect

from dit_cachegraph.serving.limits import Limits, Refused


async def read_body(request: Request, limits: Limits) -> bytes:
    """The bytes of a JSON body.

    Raises:
        Refused: 415 for another type, 413 where it is too large, 408 where it comes too slowly, 400
            where the client goes away.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, "send JSON, with `Content-Type: application/json`")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refused(415, "send the body as it is, without a Content-Encoding")
    try:
        return await asyncio.wait_for(_read(request, limits.max_body_bytes), limits.body_seconds)
    except asyncio.TimeoutError:
        told = f"the body didn't come within {limits.body_seconds:g} s"
        raise Refused(408, told) from None
    except ClientDisconnect:
        raise Refused(400, "the client went away before the end of its body") from None


async def _read(request: Request, max_bytes: int) -> bytes:
    told = request.headers.get("content-length", "0")
    body, is_too_large = bytearray(), told.isdecimal() and int(told[:20]) > max_bytes
    if not is_too_large:
        async for chunk in request.stream():
            body += chunk
            is_too_large = len(body) > max_bytes
            if is_too_large:
                break
    if is_too_large:
        raise Refused(413, f"the body is larger than {max_bytes} bytes, as many as are taken")
    return bytes(body)
