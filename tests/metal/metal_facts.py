"""What is published about Metal's Objective-C surface, and what our stub header declares.

Reads the generated metadata of the pyobjc-framework-Metal wheel as data (it is never imported), and
clang's view of sim/include/Metal/Metal.h for an arm64 Mac. Compares nothing.
"""

import ast
import json
import re
import subprocess
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

CLANG = "clang-19"
OBJDUMP = "llvm-objdump-19"
SIM = Path(__file__).resolve().parent / "sim"
MAC_FLAGS = (
    *("-target", "arm64-apple-macos14", "-nostdlibinc", "-ffreestanding", "-fblocks"),
    *("-isystem", str(SIM / "include_mac"), "-I", str(SIM / "include")),
)
WHEEL_MEMBER = "Metal/_metadata.py"


@dataclass
class Surface:
    """Methods and constants.

    Attributes:
        methods: selector to {class or protocol: (result, parameters)} as type encodings; a type
            that is not told is "".
        constants: name to integer.
        names: constants that are objects.
    """

    methods: dict = field(default_factory=dict)
    constants: dict = field(default_factory=dict)
    names: set = field(default_factory=set)

    def add(self, owner, selector, result, parameters):
        self.methods.setdefault(selector, {})[owner] = (result, tuple(parameters))


def published(wheel):
    """The Surface that a pyobjc-framework-Metal wheel describes."""
    surface = Surface()
    for node in ast.walk(ast.parse(zipfile.ZipFile(wheel).read(WHEEL_MEMBER))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "r":
            _add_method(surface, node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            for name, value in re.findall(r"\$(\w+)@(-?\d+)(?=\$|$)", node.value):
                surface.constants[name] = int(value)
            surface.names |= set(re.findall(r"\$(\w+)(?=\$|$)", node.value))
    return surface


def _add_method(surface, call):
    """r(class, selector, {"retval": ..., "arguments": {2: ...}}); others have computed types."""
    try:
        owner, selector, info = (ast.literal_eval(argument) for argument in call.args)
    except ValueError:
        return
    arguments = info.get("arguments", {})
    count = selector.count(b":")
    types = [_text(arguments.get(2 + i, {}).get("type", "")) for i in range(count)]
    types = ["C" if kind == "z" else kind for kind in types]  # its word for an 8-bit number
    result = _text(info.get("retval", {}).get("type", ""))
    surface.add(_text(owner), _text(selector), result, types)


def _text(value):
    return value.decode() if isinstance(value, bytes) else value


def declared():
    """The Surface of our stub header, with every type."""
    source = "#import <Foundation/Foundation.h>\n#import <Metal/Metal.h>\n"
    dump = ("-fsyntax-only", "-Xclang", "-ast-dump=json", "-x", "objective-c", "-")
    done = subprocess.run([CLANG, *MAC_FLAGS, *dump], input=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    surface, enums = Surface(), {}
    tree = json.loads(done.stdout)["inner"]
    for node in tree:
        if node["kind"] == "EnumDecl" and node.get("name", "").startswith("MTL"):
            enums[node["name"]] = _encode(node["fixedUnderlyingType"], {})
            _add_constants(surface, node)
    for node in tree:
        if node["kind"] in ("ObjCProtocolDecl", "ObjCInterfaceDecl"):
            _add_methods(surface, node, enums)
    return surface


def _add_constants(surface, enum):
    value = -1
    for constant in enum.get("inner", []):
        if constant["kind"] == "EnumConstantDecl":
            told = _value(constant)
            value = value + 1 if told is None else told
            surface.constants[constant["name"]] = value


def _value(node):
    if node.get("kind") == "ConstantExpr":
        return int(node["value"])
    values = (_value(inner) for inner in node.get("inner", []))
    return next((value for value in values if value is not None), None)


def _add_methods(surface, node, enums):
    if not node["name"].startswith("MTL"):
        return
    for method in node.get("inner", []):
        if method["kind"] == "ObjCMethodDecl":
            parameters = [p["type"] for p in method.get("inner", []) if p["kind"] == "ParmVarDecl"]
            types = [_encode(kind, enums) for kind in parameters]
            surface.add(node["name"], method["name"], _encode(method["returnType"], enums), types)


_ENCODINGS = {
    **{"void": "v", "unsigned long": "Q", "unsigned long long": "Q", "long": "q", "double": "d"},
    **{"unsigned char": "C"},
    **{"_Bool": "Z", "bool": "Z", "void *": "^v", "const void *": "^v"},
}


def _encode(kind, enums):
    """A clang type as Objective-C's runtime encodes it."""
    written = kind["qualType"]
    if written.removeprefix("enum ") in enums:
        return enums[written.removeprefix("enum ")]
    full = kind.get("desugaredQualType", written)
    if "(^" in full:
        return "@?"
    if written == "NSRange":
        return "{_NSRange=QQ}"
    if full.startswith("struct MTLSize") or written == "MTLSize":
        return "{MTLSize=QQQ}"
    if re.fullmatch(r"\w+ \*(__autoreleasing|__strong)? ?\*|MTLAutoreleased\w+ \*", full):
        return "^@"
    if full in _ENCODINGS:
        return _ENCODINGS[full]
    assert full.startswith("id") or re.fullmatch(r"\w+(<.*>)? \*", full), kind
    return "@"


def sent_selectors(source, includes, output, sdk=None):
    """Selectors that a .m file sends, compiled for a Mac to `output`.

    sdk: __MAC_OS_X_VERSION_MAX_ALLOWED, which tells what an SDK declares; None leaves it out, as
        the system does that is no Mac.
    """
    command = [CLANG, *MAC_FLAGS, "-std=gnu11", "-fno-objc-arc", "-O2", "-Wall", "-Wextra"]
    command += [f"-D__MAC_OS_X_VERSION_MAX_ALLOWED={sdk}"] if sdk else []
    command += ["-Werror", *(f"-I{path}" for path in includes), "-c", str(source)]
    done = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    section = ("--macho", "--section", "__TEXT,__objc_methname")
    listed = subprocess.run([OBJDUMP, *section, str(output)], capture_output=True, text=True)
    return set(re.findall(r"^[0-9a-f]+\s+(\S+)$", listed.stdout, re.MULTILINE))
