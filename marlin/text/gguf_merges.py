"""Merges that a GGUF file states for pieces of SentencePiece's kind: Gemma 4's.

Lines are cut from each other before merges are looked for, which no merge that is read here sees:
one of a line end and something else is refused.
"""

from marlin.errors import ModelFileError
from marlin.files.fields import Fields

MODEL = "gemma4"


def stated_merges(fields: Fields, ids: dict[str, int]) -> list[tuple[str, str]] | None:
    """The two pieces of each merge, the first one first; None where a file's model states none.

    Args:
        fields: of `tokenizer.ggml.*`.
        ids: {piece: its id}.

    Raises:
        ModelFileError: one is of no pieces, or makes none, or joins lines.
    """
    if fields.raw("model") != MODEL:
        return None
    merges = []
    for rank, merge in enumerate(fields.texts("merges")):
        left, _, right = merge.partition(" ")
        whole = left + right
        wrong = next((piece for piece in (left, right, whole) if piece not in ids), None)
        if wrong is not None or ("\n" in whole and whole.strip("\n")):
            needed = f"needs {wrong!r:.80}, which is no token" if wrong else "joins lines"
            message = f"{fields.prefix}merges: merge {rank} {merge!r:.80} {needed}"
            raise ModelFileError(fields.path, message)
        merges.append((left, right))
    return merges
