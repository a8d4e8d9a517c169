"""Answers for programs that run an event loop. Nothing of the server imports this.

A whole answer needs none of it: `await asyncio.to_thread(model.chat, messages)`.
"""

import asyncio
from collections.abc import AsyncIterator

from marlin.library import Piece, Stream


async def pieces(stream: Stream) -> AsyncIterator[Piece]:
    """What a Stream gives, without holding the loop up; leaving early, or being cancelled, ends the
    answer."""
    try:
        while (piece := await asyncio.to_thread(next, stream, None)) is not None:
            yield piece
    finally:
        stream.close()
