"""Names of files that are parts of one: PREFIX-00001-of-00003.gguf, from 1."""

import os
import re

_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.ASCII | re.DOTALL)


def prefix_of(name: str) -> str:
    """What the parts are called together; the name itself, without `.gguf`, of what is no part."""
    found = _NAME.fullmatch(name)
    return found[1] if found else name.removesuffix(".gguf")


def parts_of(path: str) -> tuple[int, list[str]]:
    """(the number of this part, paths of all of them); (1, [path]) of what is no part."""
    folder, name = os.path.split(path)
    found = _NAME.fullmatch(name)
    if not found or not 1 <= int(found[2]) <= int(found[3]):
        return 1, [path]
    names = (f"{found[1]}-{i + 1:05}-of-{found[3]}.gguf" for i in range(int(found[3])))
    return int(found[2]), [os.path.join(folder, name) for name in names]
