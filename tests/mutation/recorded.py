"""What is kept: which tests come to which mutant's place and how long each takes; what was judged.

Runs nothing. Both are lines in a file, written as they come: what is interrupted loses none.
"""

import ast
import hashlib
import json


class Judged:
    """The verdicts of one draw, on disk as they come: whoever draws the same again goes on.

    Attributes:
        results: dicts of a Mutant's fields, `verdict` and `source`, the file as it was changed.
    """

    def __init__(self, path):
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.results = [json.loads(line) for line in lines]

    def of(self, path, source):
        """The verdict on a file that was changed like this, or None."""
        for result in self.results:
            if (result["path"], result["source"]) == (path, source):
                return result["verdict"]
        return None

    def add(self, result):
        self.results.append(result)
        with self._path.open("a") as file:
            file.write(json.dumps(result) + "\n")


class Record:
    """Which tests come to the places of a draw, and how long each took.

    Attributes:
        tests: id -> [outcome, seconds].
    """

    def __init__(self, path):
        self._path = path
        self.tests, self._places = {}, {}
        for line in path.read_text().splitlines() if path.exists() else ():
            self._take(*json.loads(line))

    def _take(self, name, outcome, seconds, places):
        self.tests[name] = [outcome, seconds]
        self._places[name] = places

    def add(self, name, outcome, seconds, places):
        """Keep what a test did: `places` are names that place_of gives."""
        self._take(name, outcome, seconds, places)
        with self._path.open("a") as file:
            file.write(json.dumps([name, outcome, seconds, places]) + "\n")

    def covering(self, place):
        """The tests that passed and come to a place."""
        return {
            name for name, places in self._places.items()
            if place in places and self.tests[name][0] == "passed"
        }  # fmt: skip


def place_of(mutant, source):
    """A name for a mutant that holds while its line does, wherever in the file that may be."""
    start = source.rfind(b"\n", 0, mutant.start) + 1
    end = source.find(b"\n", mutant.start)
    line = source[start : end if end >= 0 else len(source)]
    number = source[:start].count(b"\n" + line + b"\n")
    what = [mutant.path, line.decode(), number, mutant.start - start, mutant.operator, mutant.new]
    return hashlib.sha256(repr(what).encode()).hexdigest()[:12]


def enclosing(path, line):
    """The names of the functions and classes around a line, but for those that begin with _."""
    nodes = ast.walk(ast.parse(path.read_text()))
    kinds = ast.FunctionDef, ast.ClassDef
    around = [node for node in nodes if isinstance(node, kinds) and _holds(node, line)]
    return [node.name for node in around if not node.name.startswith("_")]


def _holds(node, line):
    return node.lineno <= line <= node.end_lineno
