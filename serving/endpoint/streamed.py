"""Requests whose bodies come as streams, from a server of another library."""

import asyncio
from collections.abc import AsyncIterator

from serving.calls import Answer
from serving.computing import failed
from serving.endpoint.answering import BodyTooLargeError, Endpoint, Limits, refusal
from serving.endpoint.heads import Head
from serving.errors import RequestError


async def answer_streamed(
    endpoint: Endpoint, head: Head, chunks: AsyncIterator[bytes], limits: Limits
) -> Answer:
    """Return the answer to a request; it raises nothing.

    Args:
        limits: those of the endpoint.
    """
    found = endpoint.begin(head)
    if not isinstance(found, Answer):
        try:
            body = await _body(head, chunks, limits)
        except TimeoutError:
            found.abandon()
            found = failed(408, f"the body did not come within {limits.body_seconds:g} seconds")
        except Exception as error:
            found.abandon()
            found = refusal(error)
        except BaseException:
            found.abandon()
            raise
        else:
            answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

            def done(answer: Answer) -> None:
                if not answered.done():
                    answered.set_result(answer)

            found.complete(body, done)
            found = await answered
    endpoint.note(head, found)
    return found


async def _body(head: Head, chunks: AsyncIterator[bytes], limits: Limits) -> bytes:
    limit, length = limits.body_bytes, head.headers.get("content-length", "0")
    parts, size = [], 0
    async with asyncio.timeout(limits.body_seconds):
        async for chunk in chunks:
            parts.append(chunk)
            size += len(chunk)
            if size > limit:
                raise BodyTooLargeError(f"the body has more than {limit} bytes")
    if str(size) != (length.lstrip("0") or "0"):
        raise RequestError(f"the body ended after {size} of {length[:20]} bytes")
    return b"".join(parts)
