"""Which KV blocks are free, held or cached. Pure bookkeeping: knows no requests and no device.

A block is held by one or more sequences, or unused. A full block may carry the hash of all tokens
up to its end; unused, it is then cached: still found by that hash, and given away last.

Layers with a window have a WindowPool: blocks that no later query sees go back to it. Layers with a
state have a StatePool, whose slots are kept and found as blocks are.
"""

import hashlib
from collections import OrderedDict

import numpy as np

# In a table, in place of a block that was given back.
NO_BLOCK = -1


def root_hash(owner):
    """What the first block of a prompt is hashed behind: whoever else has the same tokens, but
    another owner, has other hashes."""
    return hashlib.blake2b(owner.encode(), digest_size=32).digest() if owner else b""


def block_hash(parent, token_ids):
    """Hash of a full block of tokens that follows the blocks hashed in `parent`.

    Cryptographic, because a collision would show one request's context to another.

    Args:
        parent: bytes, the hash of the block before; root_hash() for the first.
        token_ids: the block's tokens.
    """
    tokens = np.asarray(token_ids, np.int32).tobytes()
    return hashlib.blake2b(tokens, key=parent, digest_size=32).digest()


class BlockPool:
    """A fixed number of KV blocks, handed out and taken back by id.

    Args:
        num_blocks: blocks in the cache, ids 0 to num_blocks - 1.
        block_size: tokens a block.
    """

    def __init__(self, num_blocks, block_size):
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._num_holders = [0] * num_blocks
        self._hashes = [None] * num_blocks
        self._by_hash = {}
        # Unused blocks, next to be given away first: those without a hash, then the cached ones,
        # the longest unused first; of either kind first those that nobody is likely to ask for.
        self._spare = OrderedDict.fromkeys(range(num_blocks))
        self._unused = OrderedDict()

    @property
    def num_free(self):
        """Blocks that nobody holds, cached ones among them."""
        return len(self._spare) + len(self._unused)

    @property
    def num_cached(self):
        """Unused blocks that can still be found by their hash."""
        return sum(self._hashes[block] is not None for block in (*self._spare, *self._unused))

    def blocks_for(self, num_tokens):
        """Blocks that hold num_tokens tokens."""
        return -(-num_tokens // self.block_size)

    def take(self, count):
        """ids of `count` blocks, or None when fewer are free (and then none is taken)."""
        if count > self.num_free:
            return None
        blocks = [(self._spare or self._unused).popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._num_holders[block] = 1
            self._forget(block)
        return blocks

    def _forget(self, block):
        if self._hashes[block] is not None:
            del self._by_hash[self._hashes[block]]
            self._hashes[block] = None

    def find(self, hashes):
        """Hold the blocks of the longest known beginning of a chain of hashes; ids in order."""
        blocks = []
        for value in hashes:
            if (block := self._by_hash.get(value)) is None:
                break
            blocks.append(block)
        self._hold(blocks)
        return blocks

    def _hold(self, blocks):
        for block in blocks:
            self._unused.pop(block, None)
            self._spare.pop(block, None)
            self._num_holders[block] += 1

    def remember(self, block, value):
        """Let a held, full block be found by its hash, unless another block has the same tokens."""
        if self._hashes[block] is None and value not in self._by_hash:
            self._hashes[block] = value
            self._by_hash[value] = block

    def give_back(self, blocks, is_wanted=True):
        """Let go of blocks that take() or find() gave, in logical order.

        The last of them are given away first: a beginning is worth more than what follows it.

        Args:
            is_wanted: someone may well ask for them by their hashes.
        """
        for block in reversed(blocks):
            assert self._num_holders[block] > 0, "a block was given back twice"
            self._num_holders[block] -= 1
            if self._num_holders[block] == 0:
                has_hash = self._hashes[block] is not None
                (self._unused if has_hash and is_wanted else self._spare)[block] = None
                if not has_hash:
                    self._spare.move_to_end(block, last=False)

    def check(self, held):
        """Compare with the blocks that sequences hold, one entry for each hold.

        Raises:
            AssertionError: a block is lost, unused while held, or found by a wrong hash.
        """
        counts = [0] * self.num_blocks
        for block in held:
            counts[block] += 1
        assert counts == self._num_holders, "holders are not those that sequences know of"
        unused = {block for block, count in enumerate(counts) if count == 0}
        both = [*self._spare, *self._unused]
        assert sorted(both) == sorted(unused), "a block is neither held nor unused, or both"
        known = {value: block for block, value in enumerate(self._hashes) if value is not None}
        assert known == self._by_hash, "a hash leads to another block"


class StatePool(BlockPool):
    """Slots of states: a state after a full block of tokens is found by that block's hash."""

    def __init__(self, num_slots):
        super().__init__(num_slots, 1)

    def usable(self, hashes, count):
        """After how many blocks, `count` at most, there is a state."""
        while count and hashes[count - 1] not in self._by_hash:
            count -= 1
        return count

    def find_after(self, value):
        """The slot of the state after a known block, now held."""
        slot = self._by_hash[value]
        self._hold([slot])
        return slot


class WindowPool(BlockPool):
    """The blocks of layers whose queries see the last `window` tokens, themselves included.

    A sequence's table has NO_BLOCK where it has given a block back.
    """

    def __init__(self, window, num_blocks, block_size):
        super().__init__(num_blocks, block_size)
        self.window = window

    def first_seen(self, position):
        """The first block, by its place in a table, of which a query at a position sees a token."""
        return max(0, position - self.window + 1) // self.block_size

    def most_held(self, num_tokens):
        """Blocks that a sequence holds at most while it computes so many tokens at once."""
        return self.blocks_for(self.window) + self.blocks_for(num_tokens) + 2

    def usable(self, hashes, count):
        """How many blocks a sequence may begin after, `count` at most: of those before that end,
        the ones that it still sees are known."""
        while count:
            seen = range(count - 1, self.first_seen(count * self.block_size) - 1, -1)
            lost = next((index for index in seen if hashes[index] not in self._by_hash), None)
            if lost is None:
                break
            count = lost
        return count

    def find_seen(self, hashes, count):
        """The table of a sequence that begins after `count` blocks, as usable() says it may: those
        that it sees are now held."""
        first = self.first_seen(count * self.block_size)
        blocks = [self._by_hash[value] for value in hashes[first:count]]
        self._hold(blocks)
        return [NO_BLOCK] * first + blocks
