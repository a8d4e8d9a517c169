"""How several processes that serve one model divide the machine. Starts none of them."""

from typing import NamedTuple

from marlin.files.sealed import SealedModel


class Share(NamedTuple):
    """One such process's part.

    Attributes:
        num_processes: processes that divide the cores and the memory for KV caches.
        weights_fd: descriptor of the file, without a name, that repacked weights are shared in.
        writes_weights: this process fills the file, and no other runs yet; else it is filled.
        model: the model's files, where all processes read the same sealed copies.
    """

    num_processes: int
    weights_fd: int
    writes_weights: bool = False
    model: SealedModel | None = None
