"""The folder of a conversion that is under way: `.DST.partial`, which an interrupted run leaves and
the next run of the same words goes on with.

Owns who may write there, and the note of what is done. Refuses to know how anything is converted.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from marlin.errors import ConfigError, ModelFileError
from marlin.files.strict_json import read_json_object

NOTE, STATES, KEPT = "unfinished.json", "unfinished-{}.npy", "unfinished-{}.json"


class Unfinished:
    """What of a conversion is done.

    Args:
        folder: made if it is not there, and emptied if what lies there was asked for otherwise.
        asked: JSON value of all that decides the result.

    Attributes:
        done: names of tensors that are written.
        errors: {role: [squared error, squared norm]} of those.
        layer: the next one to pass texts through; 0: the first.
        states: arrays of the texts before that layer.

    Raises:
        ConfigError: another process is converting into the folder.
    """

    def __init__(self, folder: Path, asked: object):
        self.folder = folder
        self._asked = json.loads(json.dumps(asked))
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise ConfigError(f"another run is converting into {folder}") from None
        self.done: set[str] = set()
        self.errors: dict[str, list[float]] = {}
        self.layer = 0
        self.states: list[np.ndarray] = []
        self._read()

    @property
    def is_new(self) -> bool:
        return not (self.folder / NOTE).exists()

    def _read(self):
        try:
            note = read_json_object(str(self.folder / NOTE)) if not self.is_new else {}
            if note.get("asked") == self._asked:
                self.layer = note["layer"]
                names = (STATES.format(index) for index in range(note["num_states"]))
                self.states = [np.load(self.folder / name, allow_pickle=False) for name in names]
                self.done, self.errors = set(note["done"]), note["errors"]
                return
        except (ModelFileError, OSError, ValueError):
            pass  # it was cut off while it was written
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def note(self, done, errors, layer=0, states=()):
        """Note what is done, once it is on the disk."""
        for index, state in enumerate(states):
            with open(self.folder / f"{STATES.format(index)}.new", "wb") as file:
                np.save(file, state)
        said = {"asked": self._asked, "done": sorted(done), "errors": errors}
        said |= {"layer": layer, "num_states": len(states)}
        with open(self.folder / f"{NOTE}.new", "w", encoding="utf-8") as file:
            json.dump(said, file)
        # Were it cut off between these, states of a later layer would be an earlier one's.
        (self.folder / NOTE).unlink(missing_ok=True)
        for name in (*(STATES.format(index) for index in range(len(states))), NOTE):
            os.replace(self.folder / f"{name}.new", self.folder / name)

    def keep(self, name: str, make: Callable[[], Any]) -> Any:
        """The JSON value that a run before this one has kept under a name, or what make() makes,
        kept for the next."""
        path = self.folder / KEPT.format(name)
        if not path.exists():
            self.note(self.done, self.errors, self.layer, self.states)
            value = json.dumps(make())
            path.with_suffix(".new").write_text(value, encoding="utf-8")
            os.replace(path.with_suffix(".new"), path)
        return json.loads(path.read_text(encoding="utf-8"))

    def finish(self, destination: Path) -> None:
        """The folder becomes the destination."""
        for pattern in (NOTE, STATES.format("*"), KEPT.format("*")):
            for path in self.folder.glob(f"{pattern}*"):
                path.unlink()
        self.folder.rename(destination)
        os.close(self._lock)

    def leave(self) -> None:
        """Keep it for the next run."""
        os.close(self._lock)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)
