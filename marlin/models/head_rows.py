"""Where a folder has the matrix of each head: as rows of a larger one. A family says it (spec.py),
plan_heads.py cuts them out. Refuses to know both."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HeadRows:
    """How a folder may hold a matrix of each head: as rows of one that has those of all heads.

    Attributes:
        name, gguf: of that one.
        rows: that a head has of it.
        first: of them, the first one that is meant; a matrix turned has as many as it has columns.
        turned: rows there are columns here.
    """

    name: str
    gguf: str
    rows: int
    first: int
    turned: bool
