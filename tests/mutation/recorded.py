"""What is kept: which tests run which lines of marlin/ and how long each takes; what was judged.

Runs nothing. Lines are followed when a file changes after the record was made.
"""

import ast
import difflib
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
    """Which tests run which lines, and how long each took.

    `tests`: id -> [outcome, seconds]; `lines`: file -> {line: set of test ids};
    `sources`: file -> its lines when that was recorded.
    """

    def __init__(self, path):
        self.path = path
        kept = json.loads(path.read_text()) if path.exists() else {}
        self._early = None
        self.tests = kept.get("tests", {})
        self.sources = kept.get("sources", {})
        names = list(self.tests)
        self.lines = {
            file: {int(line): {names[test] for test in tests} for line, tests in lines.items()}
            for file, lines in kept.get("lines", {}).items()
        }

    def save(self):
        index = {name: number for number, name in enumerate(self.tests)}
        lines = {
            file: {line: sorted(map(index.get, tests)) for line, tests in lines.items()}
            for file, lines in self.lines.items()
        }
        kept = {"tests": self.tests, "sources": self.sources, "lines": lines}
        self.path.write_text(json.dumps(kept))

    def add(self, folder, tests, root):
        """Take in the traces of tests, [(id, outcome, seconds)], by their number in the run."""
        for file in list(self.lines):
            self._now(file, root)
        self.tests.update({name: [outcome, seconds] for name, outcome, seconds in tests})
        for lines in self.lines.values():
            for ids in lines.values():
                ids.difference_update({name for name, *_ in tests})
        for trace in folder.glob("lines.*"):
            number = int(trace.name.split(".")[1])
            if number == 0 or number > len(tests):
                continue
            for line in set(trace.read_text().splitlines()):
                file, _, at = line.rpartition(":")
                if not at.isdigit():  # a test that plays with descriptors had another's write here
                    continue
                if f"marlin/{file}" not in self.sources:
                    self._now(f"marlin/{file}", root)
                lines = self.lines[f"marlin/{file}"]
                lines.setdefault(int(at), set()).add(tests[number - 1][0])

    def _now(self, file, root):
        """Bring what was recorded of a file to the places its lines have now."""
        path = root / file
        text = path.read_text().splitlines() if path.exists() else []
        if self.sources.get(file) == text:
            return
        same = difflib.SequenceMatcher(None, self.sources.get(file, []), text, autojunk=False)
        old = self.lines.get(file, {})
        self.lines[file] = {
            block.b + offset + 1: old[block.a + offset + 1]
            for block in same.get_matching_blocks()
            for offset in range(block.size)
            if block.a + offset + 1 in old
        }
        self.sources[file] = text

    def covering(self, mutant, root):
        """The tests that run a mutant's line; without one, its function; at import, the module."""
        self._now(mutant.path, root)
        if self._early is None:
            self._early = _run_at_import(root)
        lines = self.lines.get(mutant.path, {})
        found = set()
        around = _function(root / mutant.path, mutant.line)
        if not mutant.at_import:
            found = set().union(*(lines.get(line, ()) for line in mutant.lines))
            if not found:  # a trace may miss a line where descriptors or time run out
                found = set().union(*(lines.get(line, ()) for line in _body(around)))
        if mutant.at_import or (around and around.name in self._early):
            heads = _import_lines(root / mutant.path)
            found = set().union(*(ids for line, ids in lines.items() if line not in heads))
            found |= self._importers(mutant.path, root)
        return {name for name in found if self.tests[name][0] == "passed"}

    def _importers(self, path, root):
        """The tests of modules that import this one, where its own functions say little, and those
        that import it themselves."""
        module = path[: -len(".py")].replace("/", ".")
        package, _, name = module.rpartition(".")
        found = set()
        for file, lines in self.lines.items():
            text = "\n".join(self.sources[file])
            if module in text or f"from {package} import {name}" in text:
                heads = _import_lines(root / file)
                found |= set().union(*(ids for line, ids in lines.items() if line not in heads))
        for file in {name.partition("::")[0] for name in self.tests}:  # whoever reads its values
            text = (root / file).read_text() if (root / file).exists() else ""
            if f"from {module} import" in text or f"from {package} import {name}" in text:
                found |= {test for test in self.tests if test.startswith(f"{file}::")}
        return found


def _function(path, line):
    """The innermost function around a line, or None."""
    nodes = [
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)
    ]
    around = [node for node in nodes if line in _body(node)]
    return min(around, key=lambda node: len(_body(node)), default=None)


def enclosing(path, line):
    """The names of the functions and classes around a line, but for those that begin with _."""
    nodes = ast.walk(ast.parse(path.read_text()))
    kinds = ast.FunctionDef, ast.ClassDef
    around = [node for node in nodes if isinstance(node, kinds) and _holds(node, line)]
    return [node.name for node in around if not node.name.startswith("_")]


def _holds(node, line):
    return node.lineno <= line <= node.end_lineno


def _body(function):
    return range(function.body[0].lineno, function.end_lineno + 1) if function else range(0)


def _run_at_import(root):
    """Names of the functions that run while modules are imported, as makers of tables do: which
    test is traced in them says nothing of which needs them."""
    trees = [ast.parse(path.read_text()) for path in (root / "marlin").rglob("*.py")]
    functions = {}
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                functions.setdefault(node.name, []).append(node)
    early, found = set(), set().union(*map(_called, trees))
    while found:
        early |= found
        inner = [node for name in found for node in functions.get(name, ())]
        found = set().union(*map(_called, inner)) - early
    return early


def _called(scope):
    """Names called in a module or function, but not in the functions within it."""
    names, nodes = set(), list(scope.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            names.add(node.func.id)
        if not isinstance(node, (ast.FunctionDef, ast.Lambda)):
            nodes.extend(ast.iter_child_nodes(node))
    return names


def _import_lines(path):
    """The lines of a file that run while it is imported."""
    tree = ast.parse(path.read_text())
    bodies = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {line for node in bodies for line in range(node.body[0].lineno, node.end_lineno + 1)}
    return set(range(1, tree.body[-1].end_lineno + 1 if tree.body else 1)) - inside
