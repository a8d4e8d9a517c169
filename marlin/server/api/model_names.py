"""The names that requests may give for the served model.

Owns which name is taken and which one answers give; knows nothing else of the model.
"""

from typing import NamedTuple

from marlin.errors import ModelNotFoundError
from marlin.files.fields import shown

ANY_NAME = "*"


class ModelNames(NamedTuple):
    """names: at least one, the first of which answers give; takes_any: requests may give others."""

    names: tuple[str, ...]
    takes_any: bool = False

    def check(self, name: str | None) -> None:
        """Raise ModelNotFoundError for a name that is not served; None is no name."""
        if name is not None and name not in self.names and not self.takes_any:
            raise ModelNotFoundError(f"model {shown(name)} is not served here", param="model")


def served_as(asked: str | None, model_id: str) -> ModelNames:
    """The names of a model.

    Args:
        asked: the operator's with commas between them, ANY_NAME among them for any; None, or that
            alone, adds the model's.
        model_id: the model's own name.
    """
    given = asked.split(",") if asked else []
    names = tuple(name for name in given if name != ANY_NAME)
    return ModelNames(names or (model_id,), ANY_NAME in given)
