"""Metal Marlin: an OpenAI-compatible server for quantized language models.

For programs of one's own, `__all__` is what may be relied on (docs/embedding.md); it is imported
when it is first named, so that `import marlin` alone loads nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marlin.engine.load import Batching
    from marlin.library import Answer, Model, Piece, Server, Stream, open_model

__version__ = "0.1.0"
__all__ = ["Answer", "Batching", "Model", "Piece", "Server", "Stream", "open_model"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from marlin import library

    return getattr(library, name)
