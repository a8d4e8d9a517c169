"""Where a model is: a folder or a file, or the sentence that helps whoever mistook something else
for one.
"""

import os
import re

from marlin.errors import ModelFileError

# owner/name, as hubs call what they have.
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_MAX_NAMED = 3


def is_folder(path) -> bool:
    """Whether the model at `path` is a folder, or else a file.

    Raises:
        ModelFileError: nothing is there, it is neither, or a folder that only has models in it.
    """
    if os.path.isdir(path):
        _refuse_a_folder_of_models(path)
        return True
    if os.path.isfile(path):
        return False
    if os.path.lexists(path) and os.path.exists(path):
        raise ModelFileError(path, "is neither a regular file nor a folder")
    text = "no such file or folder; expected a .gguf file or a model folder"
    if os.fspath(path).startswith(("http://", "https://")):
        text = "is an address, and this opens no connection; bin/chat URL talks to a server"
    if _HUB_NAME.fullmatch(os.fspath(path)) and not os.path.isdir(os.path.dirname(path)):
        text += (
            ". If this is a name on a hub: nothing is downloaded here; fetch it, and give its path"
        )
    raise ModelFileError(path, text)


def _refuse_a_folder_of_models(path):
    names = sorted(os.listdir(path))
    inside = [name for name in names if name.endswith(".gguf")]
    if inside and "config.json" not in names:
        more = f" and {len(inside) - _MAX_NAMED} more" if len(inside) > _MAX_NAMED else ""
        shown = ", ".join(inside[:_MAX_NAMED])
        raise ModelFileError(
            path, f"is a folder with {shown}{more} in it; give the file's own path"
        )
