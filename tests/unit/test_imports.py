"""The project's own sources: which layer may import which, and that nothing in them can call
out."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent.parent / "marlin"

# Layers that anyone may import; they import none but these themselves.
LEAVES = {"errors", "config", "option_values", "streams", "turns", "files", "text"}
# A layer imports the leaves, itself and what stands beside it. Files right under marlin/ are
# layers, too; "" is the package itself, which holds the version.
BELOW = {
    "": {"engine", "library"},  # when they are first named
    "errors": set(),
    "config": set(),
    "option_values": set(),
    "streams": set(),
    "turns": set(),
    "files": set(),
    "text": set(),
    "server": set(),
    "device": set(),
    "weights": {"device"},
    "models": {"device", "weights"},
    "engine": {"device", "weights", "models"},
    "server.observe": {"", "engine"},
    "server.http": set(),
    "server.api": {"", "engine", "server.observe", "server.http"},
    "server.process": {"", "device", "engine", "server.observe", "server.http", "server.api"},
    "commands": {
        *("", "device", "weights", "models", "engine", "library"),
        *("server.http", "server.api", "server.observe", "server.process"),
    },
    "library": {"engine", "server.http", "server.api", "server.process"},
    "aio": {"library"},
    "cli": {"", "commands"},
    "__main__": {"cli"},
}

# fmt: off
# Clients, and modules whose use is to reach another host or process, or to run what a file says.
FORBIDDEN_MODULES = {
    "asyncio", "ftplib", "http.client", "http.cookiejar", "imaplib", "marshal",
    "multiprocessing", "nntplib", "pickle", "poplib", "requests", "shelve", "smtplib", "ssl",
    "telnetlib", "urllib.request", "urllib3", "webbrowser", "xmlrpc", "xmlrpc.client",
}
NETWORK_MODULES = {"http", "socket", "socketserver", "urllib"}
FORBIDDEN_CALLS = {
    "eval", "exec", "__import__", "compile", "connect", "connect_ex", "create_connection",
    "getaddrinfo", "gethostbyname", "gethostbyaddr", "getfqdn", "sendto", "system", "popen",
    "Popen", "fork",
}
# fmt: on
# For programs that have a loop anyway.
IMPORTS_ASYNCIO = {"marlin.aio"}
# Worker processes are this Python again, and what it runs is in the package.
STARTS_PROCESSES = {
    "marlin.server.process.supervisor": {"Popen"},
    # To the service manager that started it, on this machine, before it is locked down.
    "marlin.server.process.service_manager": {"connect"},
}
# re.compile and platform.system are harmless namesakes.
HARMLESS_OWNERS = {"re", "platform"}


def sources():
    return sorted(PACKAGE.rglob("*.py"))


def layer_of(module):
    """Which layer a dotted module is of: "text" of marlin.text.stop, "server.api" of
    marlin.server.api.app, whose rooms are layers of their own, "" of marlin."""
    parts = module.split(".")[1:3]
    return ".".join(parts if parts[:1] == ["server"] else parts[:1])


def module_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imported_modules(tree):
    """Every module an AST imports, `from a import b` as both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def called_names(tree):
    """(owner, name) of every call: ("socket", "create_connection"), (None, "eval")."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield None, node.func.id
            elif isinstance(node.func, ast.Attribute):
                owner = node.func.value
                yield owner.id if isinstance(owner, ast.Name) else "", node.func.attr


def layers_imported(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "marlin":
            submodules = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or p.is_dir()}
            names = [
                f"marlin.{alias.name}" if alias.name in submodules else "marlin"
                for alias in node.names
            ]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        else:
            continue
        yield from (layer_of(name) for name in names if name.split(".")[0] == "marlin")


@pytest.mark.parametrize("path", sources(), ids=module_of)
def test_imports_go_down_the_layers_only(path):
    layer = layer_of(module_of(path))
    assert layer in BELOW, f"{layer} is a layer this test does not know"
    wrong = set(layers_imported(path)) - LEAVES - BELOW[layer] - {layer}
    assert not wrong, f"{module_of(path)} imports {wrong}"


@pytest.mark.parametrize("path", sources(), ids=module_of)
def test_no_module_imports_a_client_or_an_unpickler(path):
    imported = set(imported_modules(ast.parse(path.read_text())))
    allowed = {"asyncio"} if module_of(path) in IMPORTS_ASYNCIO else set()
    assert not imported & FORBIDDEN_MODULES - allowed
    if not layer_of(module_of(path)).startswith("server."):
        network = {name for name in imported if name.split(".")[0] in NETWORK_MODULES}
        assert not network, f"only the server may speak to a network, not {module_of(path)}"


@pytest.mark.parametrize("path", sources(), ids=module_of)
def test_no_module_connects_evaluates_or_starts_a_process(path):
    calls = {
        name
        for owner, name in called_names(ast.parse(path.read_text()))
        if owner not in HARMLESS_OWNERS
    }
    assert not (calls - STARTS_PROCESSES.get(module_of(path), set())) & FORBIDDEN_CALLS


def test_the_checks_see_what_they_are_for():
    tree = ast.parse(
        "import pickle, marlin.engine.load\nfrom urllib import request\n"
        "socket.create_connection(a)\neval(b)\nx().connect(c)"
    )
    assert {"pickle", "urllib.request", "marlin.engine.load"} <= set(imported_modules(tree))
    names = {name for _, name in called_names(tree)}
    assert {"create_connection", "eval", "connect"} <= names
    assert layer_of("marlin.server.api.app") == "server.api" and layer_of("marlin") == ""


def test_the_package_needs_the_standard_library_and_three_packages():
    found = {
        name.split(".")[0]
        for path in sources()
        for name in imported_modules(ast.parse(path.read_text()))
    }
    others = found - sys.stdlib_module_names - {"marlin"}
    assert others == {"numpy", "safetensors", "tokenizers"}
