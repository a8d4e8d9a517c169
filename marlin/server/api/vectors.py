"""One API call for the vectors or scores of texts: through the engine, and out as one answer.

The counterpart of generation.py: it owns the call's requests to the engine and ends all of them
together. Knows no routes and no dialect.
"""

import os
import queue
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from marlin.engine.request import VectorEvent
from marlin.engine.served_model import ServedModel
from marlin.errors import StoppingError
from marlin.server.api.dialect import VectorCall
from marlin.server.api.encoding import JSON_TYPE, Encoded, encode
from marlin.server.api.generation import Deadline
from marlin.server.http.handler import Handler
from marlin.server.observe.metrics import RequestRecord

if TYPE_CHECKING:  # As in engine/request.py.
    import numpy as np


class Vectors(NamedTuple):
    """A call and what answers it; attributes as Generation's."""

    handler: Handler
    record: RequestRecord
    model: ServedModel
    call: VectorCall
    deadline: Deadline
    poll_s: float

    def check_wanted(self) -> None:
        """Raise PeerGone or TimedOutError when nobody waits for the answer any more."""
        self.handler.check_peer()
        self.deadline.check()

    def encode(self) -> list[list[int]]:
        """The token ids of each of the call's texts.

        Raises:
            RequestError: the model refuses the call, or a text.
            TimedOutError, PeerGone: as check_wanted().
        """
        whose = self.check_wanted, self.handler.client
        return [
            self.model.encode_input(
                *(text.content, text.param, *whose), add_special_tokens=text.add_special_tokens
            )
            for text in self.call.texts(self.model)
        ]

    def run(self, token_lists: list[list[int]], name: str) -> None:
        """Answer with an item for each of encode()'s texts; name: of the model.

        Raises:
            TimedOutError: the deadline passed.
            StoppingError: the engine gave a request up.
            PeerGone: the client left.
        """
        key = os.urandom(12).hex()
        with self._requests(token_lists, key) as requests, self.record.in_engine(requests):
            items = [self._item(*pair) for pair in enumerate(requests)]
        body = self.call.body(items, name, key, self.record.num_prompt_tokens)
        self.handler.reply(200, encode(body), JSON_TYPE)

    def vectors(self, token_lists: list[list[int]]) -> "list[np.ndarray]":
        """As run(): what its items are made of."""
        with self._requests(token_lists, os.urandom(12).hex()) as requests:
            return [self._vector(request) for request in requests]

    @contextmanager
    def _requests(self, token_lists, key):
        """The call's requests in the engine, which end with the block."""
        engine, client = self.model.engine, self.handler.client
        requests, new_pooler = [], self.model.new_pooler
        assert new_pooler is not None, "texts() refuses such a model"
        try:
            for index, token_ids in enumerate(token_lists):
                requests.append(engine.pool(token_ids, new_pooler(), f"{key}-{index}", client))
            yield requests
        finally:
            for request in requests:
                request.abort()

    def _item(self, index, request):
        """What is kept of a text's vector, whose memory the call's body share counts."""
        item = self.call.item(index, self._vector(request))
        if isinstance(item, Encoded):
            share = self.handler.body_share
            share.client = self.handler.client
            share.set(share.num_bytes + len(item.data))
        return item

    def _vector(self, request):
        vector = None
        while True:
            try:
                event = request.events.get(timeout=self.poll_s)
            except queue.Empty:
                self.check_wanted()
                continue
            if isinstance(event, VectorEvent):
                vector = event.vector
            elif event.reason == "error":
                raise event.error
            elif vector is None:
                raise StoppingError("the server is stopping")
            else:
                return vector
