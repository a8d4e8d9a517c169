"""Which tests come to the place of each mutant of a draw, in every process that they start.

A probe is a call in the text of the copy, before or around what a mutant changes; where that runs
while a module is imported, at the start of each function that needs what it makes. Nothing else is
watched, so a test takes what time it takes. A probe sets a byte of a file that all processes have
mapped: it needs no system call, and a process that is killed loses none. Knows no tests.
"""

import ast
import builtins
import mmap
import os
from pathlib import Path

import operators

_CALL = "_comes_to_mutant"
_STATEMENTS = ("removed call", "removed statement", "removed assignment", "removed raise")
_STATEMENTS += ("removed break", "removed continue", "return value")
_MOST_USERS = 60  # functions that need what an import makes


def probed(root, mutants):
    """{path: its bytes with the probes of these mutants}; a mutant without a probe has none.

    Returns also the numbers, in `mutants`, of those that have one.
    """
    sources = {str(path.relative_to(root)): path.read_bytes()
               for path in sorted((root / "marlin").rglob("*.py"))}  # fmt: skip
    trees = {path: ast.parse(source) for path, source in sources.items()}
    additions, numbers = {}, []
    for number, mutant in enumerate(mutants):
        places = _users(trees, sources, mutant) if mutant.at_import else []
        added = [(path, *_before(sources[path], body, number)) for path, body in places]
        if not mutant.at_import:
            added = [(mutant.path, *one) for one in _around(mutant, number)]
        files = {path: [one[1:] for one in added if one[0] == path] for path, *_ in added}
        compiled = [operators.compiles(_with(sources[path], some)) for path, some in files.items()]
        if files and all(compiled):
            numbers.append(number)
            for path, some in files.items():
                additions.setdefault(path, []).extend(some)
    return {path: _with(sources[path], some) for path, some in additions.items()}, numbers


def _around(mutant, number):
    """[(position, rank among those of one position, text)] of a mutant within a function."""
    call = f"{_CALL}({number})"
    if mutant.operator in _STATEMENTS:
        return [(mutant.start, (1, 0), f"{call}; ")]
    size = mutant.end - mutant.start
    return [(mutant.start, (2, -size), f"({call} or ("), (mutant.end, (0, size), "))")]


def _before(source, statement, number):
    """The same of a probe that is a line of its own before a statement."""
    first = min([statement, *getattr(statement, "decorator_list", ())], key=lambda one: one.lineno)
    lines = source.splitlines(keepends=True)
    start = sum(map(len, lines[: first.lineno - 1]))
    start += first.col_offset - (first is not statement)  # a decorator's @
    return start, (1, 0), f"{_CALL}({number})\n{' ' * statement.col_offset}"


def _with(source, additions):
    parts, at = [], 0
    for position, _rank, text in sorted(additions):
        parts += [source[at:position], text.encode()]
        at = position
    return b"".join([*parts, source[at:]])


def _users(trees, sources, mutant):
    """[(path, first statement)] of the functions that need what a mutant's statement makes."""
    tree = trees[mutant.path]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.lineno <= mutant.line < node.body[0].lineno:
            return [(mutant.path, _first(node))]
    names = _made(tree.body, mutant.line)
    while more := _made_of(tree, names) - names:
        names |= more
    found = []
    for path, other in trees.items():
        if not names or (all(name.startswith("_") for name in names) and path != mutant.path):
            continue
        if any(name.encode() in sources[path] for name in names):
            functions = [node for node in ast.walk(other) if isinstance(node, ast.FunctionDef)]
            found += [(path, _first(node)) for node in functions if names & _mentioned(node)]
    return found if len(found) <= _MOST_USERS else []


def _made(body, line):
    """What the statement around a line gives its values to; of a class, its field or itself."""
    for node in body:
        if not node.lineno <= line <= node.end_lineno:
            continue
        if isinstance(node, ast.ClassDef):
            return _made(node.body, line) or {node.name}
        if isinstance(node, (ast.If, ast.Try, ast.For, ast.With)):
            return _made(node.body, line) or _made(getattr(node, "orelse", []), line)
        targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
        return {one.id for some in targets if some for one in ast.walk(some)
                if isinstance(one, ast.Name)}  # fmt: skip
    return set()


def _made_of(tree, names):
    """What this module's other statements make of these names while it is imported."""
    found = set()
    gives = ast.Assign, ast.AnnAssign, ast.AugAssign
    for node in tree.body:
        if isinstance(node, gives) and names & _mentioned(node):
            found |= _made(tree.body, node.lineno)
    return found


def _mentioned(tree):
    found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return found | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def _first(function):
    is_text = isinstance(function.body[0], ast.Expr) and ast.get_docstring(function) is not None
    return function.body[1] if is_text and len(function.body) > 1 else function.body[0]


class Hits:
    """The file that probes write to: a byte for each mutant of a draw."""

    def __init__(self, root, count):
        _hits(root).write_bytes(bytes(count))
        self._count = count
        self._bytes = follow(root)

    def take(self):
        """The numbers of the mutants that were come to since it was asked last."""
        found = [number for number, hit in enumerate(self._bytes[:]) if hit]
        self._bytes[:] = bytes(self._count)
        return found


def _hits(root):
    return Path(root) / ".mutate" / "hits"


def follow(root):
    """Give this process, which a test started, the call (for the `.pth` of the copy's Python).

    Returns the mapped bytes, or None where nothing is being recorded.
    """
    if not _hits(root).exists():
        return None
    number = os.open(_hits(root), os.O_RDWR)
    hits = mmap.mmap(number, 0)
    os.close(number)

    def comes_to_mutant(mutant):
        hits[mutant] = 1

    setattr(builtins, _CALL, comes_to_mutant)
    return hits
