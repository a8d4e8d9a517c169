"""Guessing a sequence's next tokens from its own earlier ones: prompt lookup, no second model.

Owns what was seen of one sequence and how far its guesses are trusted. Knows no steps and no
blocks; a wrong guess costs time and never changes a token.
"""

from array import array

# Tokens that must have occurred together before, the longest first. A single one is too weak a sign
# to gain anything on the texts measured (docs/performance.md).
NGRAM_LENGTHS = (3, 2)
# What a draft's first token is believed to be right by before the sequence has shown it: about what
# copied text and prose came to together.
_PRIOR_TRUST = {3: 0.6, 2: 0.5}
# A draft's outcome counts this much less after each one that follows, and after each step. The two
# decide how soon a sequence whose guesses are wrong is given up, after three of them, and how often
# it is tried again, once in ten steps: were each of them wrong, that would cost 1%.
_DECAY_A_DRAFT = 0.85
_DECAY_A_STEP = 0.98
# Tokens a draft: with the row of the token before it 2, 4 or 8 rows, since the CPU's kernels take
# so many at a time, and 3 take them as long as 4. Drafts of 15 won a tenth on pure copies, and lost
# as much elsewhere.
_DRAFT_LENGTHS = (1, 3, 7)
MAX_DRAFT_TOKENS = max(_DRAFT_LENGTHS)
# Of all requests together: what a row gives does not grow past that (docs/performance.md), and each
# has its logits in memory.
MAX_STEP_DRAFT_TOKENS = 16
# What a row more adds to a step, as a share of a step of one row: 0.15 for the first ones, 0.2 from
# four on (docs/performance.md).
_ROW_COST = 0.2
# Tokens indexed a step, at most: half a millisecond, so that a long prompt holds nobody up.
_MAX_INDEXED_A_STEP = 1024
# Tokens whose n-grams are surely remembered; up to twice as many are. 420 bytes each.
_GENERATION_TOKENS = 8192


class NgramIndex:
    """Where a sequence's n-grams last occurred; O(1) a token, bounded but for 4 bytes a token."""

    def __init__(self):
        self._tokens = array("i")
        self._places, self._old_places = {}, {}

    def __len__(self):
        return len(self._tokens)

    def append(self, token_id):
        """Add the sequence's next token."""
        tokens, place = self._tokens, len(self._tokens)
        if place % _GENERATION_TOKENS == 0:
            self._places, self._old_places = {}, self._places
        for length in NGRAM_LENGTHS:
            if place >= length:
                self._places[tuple(tokens[place - length :])] = place
        tokens.append(token_id)

    def find(self):
        """Where the tokens at the end occurred before.

        Returns:
            (length of the n-gram found, place of the token after it), or None.
        """
        for length in NGRAM_LENGTHS:
            ngram = tuple(self._tokens[-length:])
            place = self._places.get(ngram) or self._old_places.get(ngram)
            if place is not None:
                return length, place
        return None

    def continuation(self, place, count):
        """`count` tokens from `place` on; past the end, what they themselves repeat."""
        period = len(self._tokens) - place
        return [self._tokens[place + i % period] for i in range(count)]


class Drafter:
    """Drafts for one request.

    Args:
        max_num_tokens: how long its sequence may get.
        end_token_ids: tokens that would end it, which are not drafted.
    """

    def __init__(self, max_num_tokens, end_token_ids):
        self._max_num_tokens = max_num_tokens
        self._end_token_ids = end_token_ids
        self._index = NgramIndex()
        self._matched_length = max(NGRAM_LENGTHS)
        self._num_right = dict.fromkeys(NGRAM_LENGTHS, 0.0)
        self._num_tried = dict.fromkeys(NGRAM_LENGTHS, 0.0)

    def follow(self, request):
        """Take note of the request's tokens that are new; call it once a step."""
        begin = len(self._index)
        for token_id in request.token_ids(begin, begin + _MAX_INDEXED_A_STEP):
            self._index.append(token_id)

    def propose(self, request, num_step_rows):
        """Guess the tokens that follow the request's own.

        As many as promise most tokens after their cost: with many rows in a step, a row more costs
        nearly what a token costs there anyway.

        Args:
            num_step_rows: tokens in the step besides.

        Returns:
            list of int, at most MAX_DRAFT_TOKENS; none that could be the sequence's last, which
            need not be known to be sampled.
        """
        if len(self._index) < request.num_tokens or (found := self._index.find()) is None:
            return []
        self._matched_length, place = found
        limit = min(MAX_DRAFT_TOKENS, self._max_num_tokens - request.num_tokens - 1)
        draft = self._index.continuation(place, self._worth_drafting(limit, num_step_rows))
        ends = (i for i, token_id in enumerate(draft) if token_id in self._end_token_ids)
        return draft[: next(ends, len(draft))]

    def _worth_drafting(self, limit, num_step_rows):
        row_tokens = _ROW_COST * num_step_rows / (1 + _ROW_COST * (num_step_rows - 1))
        trust = self._trust(self._matched_length)
        most, best = 0.0, 0
        for length in _DRAFT_LENGTHS:
            count = min(length, limit)
            gain = sum(trust**i for i in range(1, count + 1)) - row_tokens * count
            if gain > most:
                most, best = gain, count
        return best

    def _trust(self, length):
        right, tried = self._num_right[length], self._num_tried[length]
        return (right + _PRIOR_TRUST[length]) / (tried + 1)

    def observe(self, num_drafted, num_accepted):
        """Learn what became of the last proposal; call it after each step of one new token.

        Args:
            num_drafted: its tokens that were in the step, 0 when there were none.
        """
        for counts in (self._num_right, self._num_tried):
            for length in NGRAM_LENGTHS:
                counts[length] *= _DECAY_A_STEP
        if num_drafted:
            length = self._matched_length
            for counts, new in (
                (self._num_right, num_accepted),
                (self._num_tried, min(num_accepted + 1, num_drafted)),
            ):
                counts[length] = counts[length] * _DECAY_A_DRAFT + new


def accept(draft_token_ids, sampled_token_ids):
    """The tokens that one step at a time would have given.

    Args:
        draft_token_ids: the draft.
        sampled_token_ids: one token more, each sampled after the draft's tokens before it.

    Returns:
        list of int: the draft's tokens that were right, and the one sampled after them.
    """
    num_right = 0
    while num_right < len(draft_token_ids) and (
        draft_token_ids[num_right] == sampled_token_ids[num_right]
    ):
        num_right += 1
    return sampled_token_ids[: num_right + 1]
