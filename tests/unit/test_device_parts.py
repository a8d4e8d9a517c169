"""A device by a library of the test's own: what is asked of it, and what becomes of its answers."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from marlin.device import abi, device
from marlin.device.device import Device, expected_kind, usable_cores, why_not
from marlin.device.library import library_path
from marlin.errors import ConfigError, DeviceError, NoDeviceError, NoMemoryError


class Library:
    """A native library that notes its calls; `codes` are what functions return, else 0."""

    def __init__(self, **codes):
        self.codes, self.calls = codes, []

    def marlin_last_error(self):
        return b"why \xff"

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((name, arguments))
            return self.codes.get(name, 0)

        return call

    def named(self, name):
        return [arguments for called, arguments in self.calls if called == name]


@pytest.fixture
def opened(monkeypatch):
    """opened(library, **options) -> the Device."""

    def make(library, **options):
        monkeypatch.setattr(device, "_load", lambda _path: library)
        return Device(kind="cpu", **options)

    return make


@pytest.mark.parametrize(
    ("code", "kind"), [(abi.ENOMEM, NoMemoryError), (-1, DeviceError), (-99, DeviceError)]
)
def test_a_negative_result_is_the_librarys_text(opened, code, kind):
    one = opened(Library())
    with pytest.raises(DeviceError) as caught:
        one.check(code)
    assert (type(caught.value), caught.value.message) == (kind, "why \ufffd")
    assert [one.check(result) for result in (0, 1, 7)] == [0, 1, 7]


def test_a_device_that_is_not_there_says_why(opened):
    with pytest.raises(NoDeviceError) as caught:
        opened(Library(marlin_device_open=abi.ENODEV))
    assert caught.value.message == "there is no cpu device: why \ufffd"
    with pytest.raises(DeviceError, match="why"):
        opened(Library(marlin_device_open=-1))


def test_a_device_is_closed_once_after_its_programs(opened):
    library = Library()
    one = opened(library)
    closed = []

    class Program:
        def close(self):
            closed.append(len(library.named("marlin_device_close")))

    programs = Program(), Program()
    for program in programs:
        one.programs.add(program)
    memory = bytearray(8)
    one.wrap(memory)
    one.close()
    one.close()
    assert closed == [0, 0] and len(library.named("marlin_device_close")) == 1
    memory.extend(b"x")  # it is held no more


def test_options_reach_the_library(opened, monkeypatch):
    monkeypatch.setattr(device, "usable_cores", lambda: 6)
    for options, expected in (
        ({}, (6, b"")),
        ({"num_processes": 4}, (1, b"")),
        ({"num_processes": 9}, (1, b"")),
        ({"num_threads": 3, "isa": "scalar"}, (3, b"scalar")),
    ):
        library = Library()
        opened(library, **options)
        (given,) = library.named("marlin_device_open")
        assert (given[0]._obj.num_threads, given[0]._obj.isa) == expected


def test_a_copy_has_the_bytes_of_its_array_and_an_empty_one_a_byte(opened, monkeypatch):
    library = Library(marlin_buffer_create=5)
    one = opened(library)
    made = []

    def array(self, dtype, shape):
        made.append((self.num_bytes, np.dtype(dtype), shape))
        return np.empty(shape, dtype)

    monkeypatch.setattr(device.Buffer, "array", array)
    one.create_from(np.zeros((2, 3), np.float32)[:, ::2])
    one.create_from(np.zeros(0, np.uint8))
    assert made == [(16, np.dtype(np.float32), (2, 2)), (1, np.dtype(np.uint8), (0,))]
    assert [arguments[1] for arguments in library.named("marlin_buffer_create")] == [16, 1]


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("350000 100000", 4),
        ("300001 100000", 4),
        ("300000 100000", 3),
        ("50000 100000", 1),
        ("0 100000", 1),
        ("9900000 100000", 8),
        ("nonsense", 8),
        ("1 2 3", 8),
        (None, 8),
    ],
)
def test_cores_are_those_of_the_affinity_and_of_the_quota(monkeypatch, tmp_path, quota, cores):
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    path = tmp_path / "cpu.max"
    if quota is not None:
        path.write_text(f"{quota}\n")
    assert usable_cores(str(path)) == cores


def test_without_an_affinity_all_cores_count(monkeypatch, tmp_path):
    monkeypatch.delattr(device.os, "sched_getaffinity", raising=False)
    for count, cores in ((3, 3), (None, 1)):
        monkeypatch.setattr(device.os, "cpu_count", lambda count=count: count)
        assert usable_cores(str(tmp_path / "none")) == cores


@pytest.mark.parametrize(
    ("platform", "macos", "is_built", "why"),
    [
        ("linux", "", True, "Metal is a Mac's, and this is none"),
        ("darwin", "14.0", True, None),
        ("darwin", "15.1", True, None),
        ("darwin", "13.6.1", True, "the shaders need macOS 14, and this is 13.6.1"),
        ("darwin", "11.0", True, "the shaders need macOS 14, and this is 11.0"),
        ("darwin", "10.15.7", True, "the shaders need macOS 14, and this is 10.15.7"),
        ("darwin", "", True, None),
        ("darwin", "14.0", False, "libmarlin_metal.dylib was not built; run `python3 "
         "metal_shim/build/build.py` or reinstall"),
    ],
)  # fmt: skip
def test_why_there_is_no_metal_here(monkeypatch, tmp_path, platform, macos, is_built, why):
    monkeypatch.setattr(device.sys, "platform", platform)
    monkeypatch.setattr(device.platform, "mac_ver", lambda: (macos, (), ""))
    path = tmp_path / "libmarlin_metal.dylib"
    if is_built:
        path.touch()
    monkeypatch.setattr(device.abi, "library_path", lambda _kind: path)
    assert why_not("metal") == why
    assert expected_kind() == ("cpu" if why else "metal")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"kern.osproductversion": b"13.2\0"}, "the shaders need macOS 14, and this is 13.2"),
        ({"kern.osproductversion": b"15.2\0"}, None),
        ({}, None),
        (
            {"sysctl.proc_translated": b"\1\0\0\0"},
            "Rosetta translates this Python; one for arm64 sees the GPU as it is",
        ),
        ({"sysctl.proc_translated": bytes(4)}, None),
    ],
)
def test_an_old_or_translated_python_on_a_mac_is_named(monkeypatch, tmp_path, settings, why):
    monkeypatch.setattr(device.sys, "platform", "darwin")
    monkeypatch.setattr(device.platform, "mac_ver", lambda: ("10.16", (), ""))
    monkeypatch.setattr(device, "_sysctl", lambda name: settings.get(name, b""))
    (tmp_path / "metal").touch()
    monkeypatch.setattr(device.abi, "library_path", lambda kind: tmp_path / kind)
    assert why_not("metal") == why


def test_a_setting_that_is_not_there_is_no_bytes():
    assert device._sysctl("no.such.setting") == b""


def test_the_library_of_a_kind_lies_beside_the_package_and_the_cpus_is_the_default():
    suffix = "dylib" if sys.platform == "darwin" else "so"
    assert library_path().name == f"libmarlin_cpu.{suffix}"
    assert library_path("metal").name == f"libmarlin_metal.{suffix}"
    assert library_path().parent == library_path("metal").parent


def test_a_library_of_another_version_is_to_be_built_anew(monkeypatch, tmp_path):
    other = SimpleNamespace(marlin_abi_version=lambda: abi.ABI_VERSION + 1)
    monkeypatch.setattr(device.abi, "load_library", lambda _path: other)
    with pytest.raises(DeviceError) as caught:
        device._load(tmp_path / "lib.so")
    version = abi.ABI_VERSION
    said = f"lib.so has ABI version {version + 1}, not {version}: rebuild it"
    assert caught.value.message == said


def test_a_library_that_cannot_be_loaded_is_named_without_its_folder(monkeypatch, tmp_path):
    path = tmp_path / "lib.so"

    def fail(_path):
        raise OSError(f"{path}: bad")

    monkeypatch.setattr(device.abi, "load_library", fail)
    with pytest.raises(DeviceError) as caught:
        device._load(path)
    assert caught.value.message == (
        "native library lib.so cannot be loaded (lib.so: bad); build it with "
        "`python3 metal_shim/build/build.py` or reinstall the package"
    )


@pytest.mark.parametrize(
    ("options", "named"), [({"num_threads": 2}, "--threads"), ({"isa": "avx2"}, "--isa")]
)
def test_options_of_a_cpu_are_refused_for_another_kind(options, named):
    with pytest.raises(ConfigError) as caught:
        Device(kind="metal", **options)
    assert caught.value.message == (
        f"{named} is the CPU device's, and this is the metal device: leave it out, or choose "
        "--device cpu"
    )


def test_a_kind_that_nobody_knows_is_named():
    with pytest.raises(DeviceError, match="^no device is a 'gpu'; there are cpu and metal$"):
        Device(kind="gpu")
