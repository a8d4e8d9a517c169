"""The shaders as a device on an NVIDIA GPU, so that the device tests can run against them.

Owns the compiled kernels and stands in for metal_shim's library: buffers are host memory with a
twin on the GPU, copied there before a replay and back after it. For small tests: a replay copies
everything that it names. Timing is gpu_times.py's.
"""

import ctypes
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / name) for name in ("metal", "support"))]

from msl import cuda
from shader import MAX_BINDINGS, MAX_VARS, NOTHING_FAILED, SHADERS, Launches

from marlin.device import abi
from marlin.device.device import Device

ROWS_VARIANTS = (1, 2, 4, 8, 16)
NUM_CONSTANTS, HEADS_PER_KV = 8, 4
# Threadgroups of attention_split at once that hide the time of a load; NVIDIA's compiler leaves
# registers for fewer. With more heads a KV head they would not hold the sums. And of attention.
SPLIT_BLOCKS = 2
PREFILL_BLOCKS = 2
# shaders/common.h: the buffers after a kernel's bindings
PARAMS_SLOT, VARS_SLOT, CALL_SLOT, STATUS_SLOT = 12, 13, 14, 15
FAILED = -5
CLANG = "clang-19"
UNITS_SOURCE = ROOT / "metal_shim" / "common" / "kernel_units.c"
UNITS = "kernel_units.so"


class Arguments(ctypes.Structure):
    """msl_launch of tests/metal/msl/include/msl/cuda.h."""

    _fields_ = [
        ("buffers", ctypes.c_void_p * 31),
        ("threadgroup_offsets", ctypes.c_uint32 * 31),
        ("grid", ctypes.c_uint32 * 3),
        ("content", ctypes.c_uint32 * 16),
    ]


class Units(ctypes.Structure):
    """marlin_units of metal_shim/common/kernels.h."""

    _fields_ = [("axis", ctypes.c_int64 * 3)]


def translate_all(folder):
    """CUDA C++ of every kernel into folder/KERNEL.cu, and how much work a dispatch is into
    folder/UNITS. Needs clang-19, no GPU."""
    folder.mkdir(parents=True, exist_ok=True)
    includes = (f"-I{ROOT / 'metal_shim'}", f"-I{SHADERS}")
    command = [CLANG, "-shared", "-fPIC", *includes, str(UNITS_SOURCE), "-o", str(folder / UNITS)]
    subprocess.run(command, check=True)
    for path in sorted(SHADERS.glob("*.metal")):
        for kernel in cuda.translate(path, [str(SHADERS)]).kernels:
            translation = cuda.translate(path, [str(SHADERS)], only=f"^{kernel}$")
            (folder / f"{kernel}.cu").write_text(translation.text)


class Kernels:
    """Kernels by name and function constants, compiled when first asked for.

    Args:
        gpu: a cuda_driver.Gpu.
        folder: what translate_all() wrote.
    """

    def __init__(self, gpu, folder):
        self.gpu, self._folder = gpu, folder
        self._launches = Launches(SHADERS)
        self._functions = {}
        self._units = ctypes.CDLL(str(folder / UNITS)).marlin_kernel_units
        self._units.restype = Units

    def function(self, kernel, constants):
        """constants: values of the function constants, by index."""
        key = kernel, tuple(constants)
        if key not in self._functions:
            text = (self._folder / f"{kernel}.cu").read_text()
            defines = [f"MSL_FC_{i}={value}" for i, value in enumerate(constants)]
            defines.append(f"MSL_CONSTANT_SLOT={PARAMS_SLOT}")
            if kernel == "attention_split" and constants[HEADS_PER_KV] <= 4:
                defines.append(f"MSL_BLOCKS={SPLIT_BLOCKS}")
            if kernel == "attention":
                defines.append(f"MSL_BLOCKS={PREFILL_BLOCKS}")
            image = cuda.compile_text(text, self.gpu.architecture, defines)
            module = self.gpu.load(image.cubin)
            self._functions[key] = self.gpu.function(module, f"msl_{kernel}")
        return self._functions[key]

    def launch(self, kernel, addresses, raw, variables):
        """Queue one dispatch.

        Args:
            addresses: of the kernel's buffers by slot, device memory; its parameters have none.
            raw: bytes of its parameters.
            variables: the step's vars as the device sees them.
        """
        rows, params = 1, params_of(kernel, raw)
        if kernel.startswith("matvec"):
            wanted = variables[params["rows_var"]]
            rows = next((size for size in ROWS_VARIANTS if size >= wanted), ROWS_VARIANTS[-1])
        simdgroups = self._launches.simdgroups(kernel, params)
        function = self.function(kernel, constants_of(kernel, params, rows, simdgroups))
        arguments = Arguments()
        ctypes.memmove(arguments.content, raw, len(raw))
        for slot, address in addresses.items():
            arguments.buffers[slot] = address
        step = np.ascontiguousarray(variables, np.int32)
        units = self._units(1 + abi.KERNELS.index(kernel), raw, ctypes.c_void_p(step.ctypes.data))
        groups = self._launches.groups(kernel, units.axis, rows)
        if all(groups):
            threads = self._launches.threads(kernel, simdgroups)
            self.gpu.launch(function, groups, threads, arguments)


def constants_of(kernel, params, rows, simdgroups):
    """ROWS, GROUP_SIZE, FLAGS, HEAD_DIM, HEADS_PER_KV, SIMDGROUPS, KV_F32 and LATENT_DIM of
    shaders/common.h."""
    if kernel.startswith("attention"):
        per_kv = int(params["num_heads"]) // int(params["num_kv_heads"])
        sizes = int(params["head_dim"]), per_kv, 0, int(params["kv_f32"]), int(params["latent_dim"])
        return 0, 0, 0, *sizes
    if kernel in ("rope_kv_write", "latent_write"):
        return 0, 0, 0, 0, 0, 0, int(params["kv_f32"]), 0
    if kernel.startswith(("matvec", "matmul", "embed")):
        return rows, int(params["group_size"]), int(params["flags"]), 0, 0, simdgroups, 0, 0
    return (0,) * NUM_CONSTANTS


def params_of(kernel, raw):
    """The parameter struct of a record."""
    names = {"embed": "EmbedParams", "matvec": "LinearParams", "matmul": "LinearParams"}
    names |= {"attention": "AttentionParams", "rope_kv_write": "RopeKvParams"}
    names |= {"latent_write": "LatentParams"}
    name = names.get(kernel) or names.get(kernel.split("_")[0])
    if name is None:
        return None
    dtype = abi.PARAMS[name]
    return np.frombuffer(raw[: dtype.itemsize], dtype)[0]


class GpuLibrary:
    """The functions of marlin.h that Device, Buffer, Recorder and Program call."""

    def __init__(self, kernels):
        self.gpu, self._kernels = kernels.gpu, kernels
        self._memory, self._programs, self._error = {}, {}, b""
        self._vars = self.gpu.allocate(4 * MAX_VARS)
        self._status = self.gpu.allocate(4)
        self._dummy = self.gpu.upload(np.zeros(16, np.uint32))
        self._next_id = 1

    def _new_id(self):
        self._next_id += 1
        return self._next_id

    def marlin_last_error(self):
        return self._error

    def marlin_kernel_find(self, name):
        return abi.KERNELS.index(name.decode())

    def marlin_buffer_create(self, _, num_bytes):
        identity = self._new_id()
        host = ctypes.create_string_buffer(max(num_bytes, 1))
        self._memory[identity] = host, self.gpu.allocate(num_bytes)
        return identity

    def marlin_buffer_contents(self, _, identity):
        return ctypes.addressof(self._memory[identity][0])

    def marlin_buffer_release(self, _, identity):
        self.gpu.release(self._memory.pop(identity)[1])
        return abi.OK

    def marlin_program_create(self, _, address, count, out):
        raw = (ctypes.c_char * (count * abi.DISPATCH.itemsize)).from_address(address)
        out._obj.value = self._new_id()
        self._programs[out._obj.value] = np.frombuffer(raw, abi.DISPATCH).copy()
        return abi.OK

    def marlin_program_destroy(self, handle):
        self._programs.pop(handle.value)

    def marlin_program_submit(self, handle, first, count, variables, num_variables):
        step = np.zeros(MAX_VARS, np.int32)
        step[:num_variables] = variables[:num_variables]
        records = self._programs[handle.value]
        self.gpu.upload(step, self._vars)
        self.gpu.upload(np.array([NOTHING_FAILED], np.uint32), self._status)
        for host, address in self._memory.values():
            self.gpu.upload(np.frombuffer(host, np.uint8), address)
        held = [self._dispatch(records[i], i, step) for i in range(first, first + count)]
        for host, address in self._memory.values():
            array = np.frombuffer(host, np.uint8)
            array[:] = self.gpu.download(address, np.uint8, array.shape)
        for address in held:
            self.gpu.release(address)
        return self._result(records)

    def _result(self, records):
        failed = int(self.gpu.download(self._status, np.uint32, (1,))[0])
        if failed == NOTHING_FAILED:
            return abi.OK
        kernel = abi.KERNELS[records[failed]["kernel"]]
        self._error = f"dispatch {failed} ({kernel}): an index in a buffer points outside".encode()
        return FAILED

    def _dispatch(self, record, index, step):
        """Queue one record; returns what is to be released once it has run."""
        kernel = abi.KERNELS[record["kernel"]]
        words = np.zeros(1 + MAX_BINDINGS, np.uint32)
        words[0] = index
        addresses = dict.fromkeys(range(MAX_BINDINGS), self._dummy)
        for slot, binding in enumerate(record["bindings"][: record["num_bindings"]]):
            if binding["buffer"]:
                memory = self._memory[int(binding["buffer"])][1]
                addresses[slot] = memory + int(binding["offset"])
                words[1 + slot] = binding["bytes"] // 4
        raw = record["params"][: record["param_bytes"]].tobytes()
        held = self.gpu.upload(words)
        addresses |= {VARS_SLOT: self._vars, CALL_SLOT: held, STATUS_SLOT: self._status}
        self._kernels.launch(kernel, addresses, raw, step)
        return held

    def marlin_program_wait(self, _):
        return abi.OK

    def marlin_device_close(self, _):
        return None


class GpuDevice(Device):
    """A Device whose kernels are the shaders. It counts as Metal: what it computes is the same."""

    def __init__(self, kernels):
        self.programs = weakref.WeakSet()
        self._wrapped = []
        self.kind = "metal"
        self.library = GpuLibrary(kernels)
        self.handle = ctypes.c_void_p(1)
