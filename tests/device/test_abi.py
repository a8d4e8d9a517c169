"""marlin/device/abi.py says the same as metal_shim/marlin.h and shaders/params.h, which are parsed
here, and as a C compiler makes of them."""

import ctypes
import os
import platform
import re
import subprocess

import numpy as np
import pytest

from marlin.device import abi
from marlin.weights import kinds

NUMPY_TYPES = {"int32_t": "i4", "uint32_t": "u4", "float": "f4", "int64_t": "i8", "uint8_t": "u1"}
SCALAR_TYPES = {
    "int": ctypes.c_int,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "const char *": ctypes.c_char_p,
    "void *": ctypes.c_void_p,
    "void": None,
}
# C's struct of each record layout in abi.py.
RECORDS = {"marlin_binding": abi.BINDING, "marlin_dispatch": abi.DISPATCH}
STRUCTURES = {"marlin_device_options": abi.DeviceOptions, "marlin_device_info": abi.DeviceInfo}


def without_comments(text):
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


@pytest.fixture(scope="module")
def params_header(checkout):
    return without_comments((checkout / "shaders" / "params.h").read_text())


@pytest.fixture(scope="module")
def device_header(checkout):
    return without_comments((checkout / "metal_shim" / "marlin.h").read_text())


def structs_of(header):
    """Struct name to its (type, field, length or None)."""
    found = {}
    for match in re.finditer(r"struct (\w+) \{(.*?)\};", header, re.DOTALL):
        found[match[1]] = fields_of(match[2])
    for match in re.finditer(r"typedef struct \{(.*?)\} (\w+);", header, re.DOTALL):
        found[match[2]] = fields_of(match[1])
    return found


def fields_of(body):
    return re.findall(r"(\w+) (\w+)(?:\[(\w+)\])?;", body)


def constants_of(header):
    """Name without MARLIN_ to value, of every #define and enum constant with a number."""
    found = {}
    pattern = r"(?:#define |\b)MARLIN_(\w+)(?: = | )(-?\d+)u?\b"
    for name, value in re.findall(pattern, header):
        found[name] = int(value)
    return found


# --- params.h ---


def test_every_parameter_struct_has_its_fields_in_order(params_header):
    in_c = {
        name: [(field, NUMPY_TYPES[kind]) for kind, field, _ in fields]
        for name, fields in structs_of(params_header).items()
    }
    in_python = {
        name: [(field, dtype[field].str[1:]) for field in dtype.names]
        for name, dtype in abi.PARAMS.items()
    }
    assert in_python == in_c


def test_parameter_structs_are_packed_words_that_fit_a_record(params_header):
    for name, fields in structs_of(params_header).items():
        assert all(length == "" for _, _, length in fields), name
        assert abi.PARAMS[name].itemsize == 4 * len(fields), name
        if name.endswith("Params"):
            assert 4 * len(fields) <= abi.MAX_PARAM_BYTES, name


# --- constants ---


def test_every_constant_of_abi_py_has_the_headers_value(params_header, device_header):
    in_c = constants_of(params_header) | constants_of(device_header)
    in_python = {
        name: value for name, value in vars(abi).items() if name.isupper() and type(value) is int
    }
    assert in_python == {name: in_c.get(name) for name in in_python}
    assert {"MAX_BINDINGS", "MAX_VARS", "KV_SPLIT", "OUTPUT_BIAS"} <= set(in_python)


def test_every_constant_that_python_needs_is_there(params_header, device_header):
    in_c = constants_of(params_header) | constants_of(device_header)
    # What only native code uses: result codes but OK, and tiles that Python never lays out.
    native_only = {"EINVAL", "ENOMEM", "EBUSY", "EDEVICE", "EIO", "ACT_GROUP", "KEY_TILE"}
    native_only |= {"ROW_TILE", "PIECE_FLOATS", "CONV_CHANNELS"}  # kinds.py's, below
    native_only |= {"DELTA_COLUMNS"}
    # Of scales, which formats.py and row_scales.py lay out.
    native_only |= {"BLOCK_COLUMNS", "BLOCK_STEP_BYTES"}
    assert {name for name in set(in_c) - native_only if not hasattr(abi, name)} == set()


def test_the_packed_formats_interleave_as_many_rows_as_the_kernels_read(params_header):
    assert constants_of(params_header)["ROW_TILE"] == kinds.ROW_TILE


# --- functions ---


def ctypes_of(declared):
    """The ctypes type of a C parameter or result."""
    declared = re.sub(r"\s*\b(?!int\b|void\b|char\b|const\b)[a-z_]+$", "", declared.strip())
    if declared in SCALAR_TYPES:
        return SCALAR_TYPES[declared]
    pointers = {
        "const marlin_device_options *": ctypes.POINTER(abi.DeviceOptions),
        "marlin_device_info *": ctypes.POINTER(abi.DeviceInfo),
        "const int32_t *": ctypes.POINTER(ctypes.c_int32),
        "marlin_device **": ctypes.POINTER(ctypes.c_void_p),
        "marlin_program **": ctypes.POINTER(ctypes.c_void_p),
        "marlin_vocabulary **": ctypes.POINTER(ctypes.c_void_p),
        "marlin_grammar **": ctypes.POINTER(ctypes.c_void_p),
    }
    opaque = ("marlin_device *", "marlin_program *", "const marlin_dispatch *")
    opaque += ("marlin_vocabulary *", "const marlin_vocabulary *", "marlin_grammar *")
    opaque += ("const marlin_edge *", "const uint8_t *", "const int64_t *", "uint32_t *")
    return ctypes.c_void_p if declared in opaque else pointers[declared]


def functions_of(header):
    """Function name to (result, arguments) as ctypes."""
    found = {}
    pattern = r"MARLIN_API\s+((?:const )?\w+ \*?)\s*(marlin_\w+)\((.*?)\);"
    for result, name, arguments in re.findall(pattern, header, re.DOTALL):
        listed = [] if arguments.strip() == "void" else re.split(r",\s*", arguments)
        found[name] = (ctypes_of(result), [ctypes_of(argument) for argument in listed])
    return found


def test_every_function_is_declared_with_the_headers_types(device_header, any_device):
    in_c = functions_of(device_header)
    assert len(in_c) == device_header.count("MARLIN_API ") - 1  # the macro's own line
    for name, (result, arguments) in in_c.items():
        function = getattr(any_device.library, name)
        assert (function.restype, list(function.argtypes)) == (result, arguments), name


def test_python_declares_no_function_that_the_header_lacks(device_header):
    assert set(abi._SIGNATURES) == set(functions_of(device_header))


# --- layouts, as a compiler makes them ---


@pytest.fixture(scope="module")
def compiled_layouts(checkout, load_script, device_header, tmp_path_factory):
    """'struct' to its size and 'struct.field' to its offset, printed by a compiled C program."""
    structs = structs_of(device_header)
    lines = [f'printf("{name} %zu\\n", sizeof({name}));' for name in structs] + [
        f'printf("{name}.{field} %zu\\n", offsetof({name}, {field}));'
        for name, fields in structs.items()
        for _, field, _ in fields
    ]
    folder = tmp_path_factory.mktemp("layouts")
    includes = '#include <stddef.h>\n#include <stdio.h>\n#include "marlin.h"\n'
    source = folder / "layouts.c"
    source.write_text(includes + "int main(void)\n{\n" + "\n".join(lines) + "\nreturn 0;\n}\n")
    compiler = load_script("metal_shim/build/build.py").find_compiler(os.environ, platform.system())
    program = folder / "layouts"
    include = f"-I{checkout / 'metal_shim'}"
    subprocess.run([*compiler, include, str(source), "-o", str(program)], check=True)
    printed = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in map(str.split, printed.splitlines())}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_is_laid_out_as_the_compiler_does(compiled_layouts, device_header, name):
    dtype, fields = RECORDS[name], structs_of(device_header)[name]
    assert dtype.itemsize == compiled_layouts[name]
    offsets = {field: dtype.fields[field][1] for field in dtype.names}
    assert offsets == {field: compiled_layouts[f"{name}.{field}"] for _, field, _ in fields}
    constants = constants_of(device_header)
    for kind, field, length in fields:
        base, shape = dtype[field].subdtype or (dtype[field], ())
        assert base == (RECORDS[kind] if kind in RECORDS else np.dtype(NUMPY_TYPES[kind]))
        digits = length if length.isdigit() or not length else str(constants[length[7:]])
        assert shape == ((int(digits),) if digits else ())


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_structure_is_laid_out_as_the_compiler_does(compiled_layouts, device_header, name):
    structure, fields = STRUCTURES[name], structs_of(device_header)[name]
    assert ctypes.sizeof(structure) == compiled_layouts[name]
    assert [field for field, _ in structure._fields_] == [field for _, field, _ in fields]
    for _, field, _ in fields:
        assert getattr(structure, field).offset == compiled_layouts[f"{name}.{field}"]


def test_the_library_has_the_version_of_abi_py(any_device):
    assert any_device.library.marlin_abi_version() == abi.ABI_VERSION
