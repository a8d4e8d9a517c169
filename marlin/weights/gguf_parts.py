"""A GGUF model in one file, or in several that llama.cpp's gguf-split has made of it.

The first part has the model's metadata, each the places of its own tensors. Owns which parts make a
whole; gguf.py reads each of them.
"""

import os

from marlin.errors import ModelFileError
from marlin.files.fields import Fields, file_fields
from marlin.files.split_name import parts_of
from marlin.weights.gguf import GGUFFile
from marlin.weights.gguf_writers import in_usual_words

MAX_PARTS = 99_999  # five digits


def read_gguf(path: str | os.PathLike) -> GGUFFile:
    """The header of a GGUF file, with the tensors of all parts if it is the first of several.

    Raises:
        ModelFileError: a part cannot be read, is missing, is of another model, or not the first.
    """
    path = os.fspath(path)
    file = GGUFFile(path)
    count = _fields(file).count("split.count", 1, minimum=0, maximum=MAX_PARTS)
    if count > 1:
        _add_parts(file, count)
    in_usual_words(file)
    return file


def _add_parts(file, count):
    """The tensors of all parts; raises as read_gguf()."""
    path = file.path
    number, paths = parts_of(path)
    if len(paths) != count:
        message = f"is one of {count} parts; their names end in -00001-of-{count:05}.gguf"
        raise ModelFileError(path, message)
    if number != 1:
        message = f"is part {number} of {count}; give the first one, {os.path.basename(paths[0])}"
        raise ModelFileError(path, message)
    _check_part(file, 0, count)
    for index, part_path in enumerate(paths[1:], 1):
        if not os.path.exists(part_path):
            message = (
                f"is part 1 of {count}, and {os.path.basename(part_path)} is missing beside it"
            )
            raise ModelFileError(path, message)
        part = GGUFFile(part_path)
        _check_part(part, index, count)
        for name, info in part.tensors.items():
            if name in file.tensors:
                message = f"is in {os.path.basename(file.tensors[name].path)}, too"
                raise ModelFileError(part_path, message, tensor=name)
            file.tensors[name] = info
    total = len(file.tensors)
    if _fields(file).count("split.tensors.count", total, minimum=0) != total:
        _fields(file).fail("split.tensors.count", f"the {total} tensors of all parts")


def _fields(file: GGUFFile) -> Fields:
    return file_fields(file.path, file.metadata)


def _check_part(file, index, count):
    fields = _fields(file)
    for name, expected in (("split.no", index), ("split.count", count)):
        if fields.count(name, minimum=0) != expected:
            fields.fail(name, f"{expected}, as the names of the parts say")
