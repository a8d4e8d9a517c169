"""Which KV blocks are free. Pure bookkeeping: knows no requests and no device."""


class BlockPool:
    """A fixed number of KV blocks, handed out and taken back by id.

    Args:
        num_blocks: blocks in the cache, ids 0 to num_blocks - 1.
        block_size: tokens a block.
    """

    def __init__(self, num_blocks, block_size):
        self.num_blocks = num_blocks
        self.block_size = block_size
        # Taken from the end: low ids go first, and a block just freed is used again while cached.
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self):
        return len(self._free)

    def blocks_for(self, num_tokens):
        """Blocks that hold num_tokens tokens."""
        return -(-num_tokens // self.block_size)

    def take(self, count):
        """ids of `count` blocks, or None when fewer are free (and then none is taken)."""
        if count > len(self._free):
            return None
        return [self._free.pop() for _ in range(count)]

    def give_back(self, block_ids):
        """Free blocks that take() gave."""
        self._free.extend(reversed(block_ids))
        assert len(self._free) <= self.num_blocks, "a block was given back twice"
