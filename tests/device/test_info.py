"""`metal-marlin info`: what it tells of each kind of device, and what it keeps to itself."""

import getpass
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from marlin import __version__, cli
from marlin.commands import info
from marlin.device import abi
from marlin.device.device import Device


@pytest.fixture(scope="module")
def report():
    return info.devices()


def test_the_cpu_device_is_described_with_all_its_kernels(report, any_device):
    facts = report["cpu"]
    described = any_device.info()
    for name in ("name", "isa", "memory_bytes", "page_bytes"):
        assert facts[name] == described[name], name
    assert facts["kernels"] == list(abi.KERNELS) and facts["missing"] == []
    assert facts["instruction_sets"][0] == facts["isa"]
    assert facts["instruction_sets"][-1] == "scalar"


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac may have Metal")
def test_a_kind_that_is_not_here_has_a_reason_instead(report):
    assert set(report["metal"]) == {"library", "reason"}
    assert "Mac" in report["metal"]["reason"]


def test_a_kernel_that_a_library_lacks_is_listed_as_missing(monkeypatch):
    monkeypatch.setattr(abi, "KERNELS", (*abi.KERNELS, "new_kernel"))
    facts = info.devices()["cpu"]
    assert facts["missing"] == ["new_kernel"] and "new_kernel" not in facts["kernels"]


def test_the_text_has_a_paragraph_for_each_kind(capsys):
    assert cli.main(["info"]) == 0
    versions, here, *_ = text = capsys.readouterr().out.splitlines()
    assert versions.startswith(f"metal-marlin {__version__}, python ")
    assert here.startswith(info.operating_system()) and platform.machine() in here
    assert [line for line in text if line in abi.DEVICE_KINDS] == list(abi.DEVICE_KINDS)
    total = len(abi.KERNELS)
    assert f"  kernels       {total} of {total}" in text


def test_json_says_the_same(capsys):
    assert cli.main(["info", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["versions"]["metal-marlin"] == __version__
    assert set(report["devices"]) == set(abi.DEVICE_KINDS)


def test_a_report_tells_nothing_of_the_user(capsys, monkeypatch):
    monkeypatch.setenv("METAL_MARLIN_API_KEY", "sesame-1234")
    for words in (["info"], ["info", "--json"], ["selftest", "--device", "cpu"]):
        assert cli.main(words) == 0
        printed = capsys.readouterr().out
        assert "sesame-1234" not in printed
        assert not re.search(rf"\b{re.escape(platform.node())}\b", printed)
        assert os.path.dirname(abi.__file__) not in printed
        assert f"/{getpass.getuser()}/" not in printed


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("garbage", "cannot be loaded"),
        ("empty of functions", "cannot be loaded"),
        ("another version", f"has ABI version 1000, not {abi.ABI_VERSION}"),
        ("missing", "(was not built|cannot be loaded)"),
    ],
)
@pytest.mark.parametrize("words", [["info"], ["selftest", "--device", "cpu"]])
def test_a_library_that_does_not_load_is_told_by_its_name_alone(
    kind, said, words, monkeypatch, tmp_path, capsys
):
    (tmp_path / "behind").mkdir()
    link = tmp_path / "link"  # a Mac's loader names both
    link.symlink_to(tmp_path / "behind")
    library = unloadable(kind, link / "libmarlin_cpu.so")
    monkeypatch.setattr(abi, "library_path", lambda _kind: library)
    cli.main(words)
    printed = capsys.readouterr().out
    assert re.search(f"libmarlin_cpu.so {said}", printed)
    assert str(tmp_path) not in printed


def unloadable(kind, path):
    """A path with no library of ours at it."""
    if kind == "garbage":
        path.write_text("no library")
    elif kind != "missing":
        source = path.with_suffix(".c")
        names = abi._SIGNATURES if kind == "another version" else ()
        source.write_text("\n".join(f"int {name}(void) {{ return 1000; }}" for name in names))
        compiler = shlex.split(os.environ.get("CC", "cc"))
        subprocess.run([*compiler, "-shared", "-fPIC", "-o", path, source], check=True)
    return path


def test_looking_leaves_no_device_open(monkeypatch):
    opened = []
    real_open = Device._open

    def watch(device, *arguments):
        real_open(device, *arguments)
        opened.append(device)

    monkeypatch.setattr(Device, "_open", watch)
    info.devices()
    assert opened and all(device.handle is None for device in opened)


GEMMA2 = Path(__file__).parents[1] / "data" / "families" / "gemma2.gguf"


def test_a_model_is_described_from_its_headers(capsys):
    assert cli.main(["info", str(GEMMA2), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["family"] == "gemma2" and facts["format"] == "gguf"
    assert facts["layers"] == 4 and facts["layers_with_window"] == 2
    # Two KV heads of 32, float16, keys and values: in two layers of each token, and in two of the
    # tokens of 26 blocks, three beginnings of 6 tokens and a step of 256.
    assert facts["kv_bytes_per_token"] == 2 * 2 * 2 * 32 * 2
    assert facts["kv_bytes_at_any_length"] == 2 * 2 * 2 * 32 * 2 * 26 * 16
    assert facts["context_tokens_on_macs"] == dict.fromkeys(("16", "24", "36", "64"), 512)
    assert cli.main(["info", str(GEMMA2)]) == 0
    text = capsys.readouterr().out
    assert "64 GB Mac     a context of 512 tokens" in text and "4, 2 of them with a window" in text
    assert "KV cache      0.5 KiB a token, and 1 MiB of windows" in text


def test_what_is_no_model_is_refused_as_serving_it_would_be(capsys, tmp_path):
    assert cli.main(["info", str(tmp_path / "none.gguf")]) != 0
    assert "no such file or folder" in capsys.readouterr().err
