"""`metal-marlin info`: the machine, the packages and the devices, for a bug report.

Of a model: what it is and where it fits, without loading it.

Tells nothing of the user: no host name, no path, no environment variable.
"""

import json
import os
import platform
import sys
from importlib import metadata
from typing import Any

from marlin import __version__
from marlin.config import add_options
from marlin.device import abi
from marlin.device.device import Device, why_not
from marlin.engine import capacity
from marlin.errors import DeviceError
from marlin.models.checkpoint import open_checkpoint
from marlin.models.spec import with_kv_dtype

# What memory_bytes is of each kind.
_WHOSE_MEMORY = {"cpu": ", the machine's", "metal": ", the recommended working-set size"}
_PACKAGES = ("numpy", "safetensors", "tokenizers")


def add_arguments(parser):
    """Declare the command's arguments on a Parser."""
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="instead: what this file or folder holds"
    )
    add_options(parser, ["kv_cache_dtype"])
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments):
    """Print what there is. Returns the exit code."""
    if arguments.model is not None:
        report, show = of_model(arguments.model, arguments.kv_cache_dtype), print_model
    else:
        report = {"versions": versions(), "machine": machine(), "devices": devices()}
        show = print_report
    if arguments.json:
        json.dump(report, sys.stdout, indent=1)
        print()
    else:
        show(report, sys.stdout)
    return 0


def of_model(path, kv_cache_dtype):
    """{fact: value} of a model, from its headers, with such a KV cache; raises as loading it."""
    device = Device(kind="cpu")
    try:
        checkpoint = open_checkpoint(path, device)
        spec = with_kv_dtype(checkpoint.spec, kv_cache_dtype)
        config = spec.config
        weight_bytes = checkpoint.weight_bytes
    finally:
        device.close()
    facts = {
        "family": config.architecture,
        "format": checkpoint.format,
        "parameters": capacity.num_parameters(spec),
        "layers": config.num_layers,
        "layers_with_window": sum(window is not None for window in config.windows),
        "max_context_tokens": config.max_context_tokens,
        "weight_bytes": weight_bytes,
    }
    if spec.is_encoder:
        return facts
    token_bytes, window_bytes = capacity.kv_growth(spec)
    return facts | {
        "kv_bytes_per_token": token_bytes,
        "kv_bytes_at_any_length": window_bytes,
        "context_tokens_on_macs": {
            str(size): capacity.context_that_fits(spec, weight_bytes, capacity.gpu_bytes(size))
            for size in capacity.MAC_GIGABYTES
        },
    }


def print_model(facts, file):
    """A model's facts as text."""
    windows = facts["layers_with_window"]
    beside = f", {windows} of them with a window" if windows else ""
    lines = [
        ("family", facts["family"]),
        ("format", facts["format"]),
        ("parameters", f"{facts['parameters'] / 1e6:,.1f} million"),
        ("layers", f"{facts['layers']}{beside}"),
        ("context", f"{facts['max_context_tokens']} tokens"),
        ("weights", f"{-(-facts['weight_bytes'] >> 20)} MiB"),
    ]
    if "kv_bytes_per_token" in facts:
        kept = f"{facts['kv_bytes_per_token'] / 1024:g} KiB a token"
        if facts["kv_bytes_at_any_length"]:
            what = "windows" if windows else "states"
            kept += f", and {-(-facts['kv_bytes_at_any_length'] >> 20)} MiB of {what}"
        lines.append(("KV cache", kept))
        for size, tokens in facts["context_tokens_on_macs"].items():
            fits = f"a context of {tokens} tokens" if tokens else "too large"
            lines.append((f"{size} GB Mac", fits))
    for label, value in lines:
        print(f"{label:<14}{value}", file=file)


def versions():
    """{name: version} of the package, Python and the packages it needs."""
    found = {"metal-marlin": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine():
    """Processor, cores and operating system."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
        model = names[0] if names else model
    return {"cpu": model, "cores": os.cpu_count(), "system": operating_system()}


def operating_system():
    """Operating system, its version and the architecture: "macOS 15.1 arm64"."""
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]} {platform.machine()}"
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def devices():
    """{kind: facts} of each kind of device.

    Facts are "library" (its file's name) and either "reason", why there is none, or what
    Device.info() says, the "kernels" that its library has and "missing", those that it lacks; for a
    CPU also "instruction_sets", those that this processor has.
    """
    return {kind: _facts(kind) for kind in abi.DEVICE_KINDS}


def _facts(kind):
    facts: dict[str, Any] = {"library": abi.library_path(kind).name}
    try:
        device = Device(kind=kind)
    except DeviceError as error:
        return facts | {"reason": why_not(kind) or error.message}
    facts |= device.info()
    found = {name: device.library.marlin_kernel_find(name.encode()) > 0 for name in abi.KERNELS}
    device.close()
    facts["kernels"] = [name for name in abi.KERNELS if found[name]]
    facts["missing"] = [name for name in abi.KERNELS if not found[name]]
    if kind == "cpu":
        facts["instruction_sets"] = [isa for isa in abi.INSTRUCTION_SETS if _has(isa)]
    return facts


def _has(isa):
    try:
        Device(num_threads=1, isa=isa, kind="cpu").close()
    except DeviceError:
        return False
    return True


def print_report(report, file):
    """The report as text."""
    print(", ".join(f"{name} {version}" for name, version in report["versions"].items()), file=file)
    here = report["machine"]
    print(f"{here['system']}, {here['cores']} cores of {here['cpu']}", file=file)
    for kind, facts in report["devices"].items():
        print(f"\n{kind}", file=file)
        for label, value in _lines(facts):
            print(f"  {label:<14}{value}", file=file)


def _lines(facts):
    """(label, value) pairs of a device's facts."""
    if "reason" in facts:
        return [("device", f"none: {facts['reason']}"), ("library", facts["library"])]
    total = len(facts["kernels"]) + len(facts["missing"])
    missing = f"; missing: {', '.join(facts['missing'])}" if facts["missing"] else ""
    lines = [
        ("device", facts["name"]),
        ("library", facts["library"]),
        ("isa", facts["isa"]),
        ("memory", f"{facts['memory_bytes'] >> 20} MiB{_WHOSE_MEMORY[facts['kind']]}"),
        ("buffers", f"{facts['max_buffer_bytes'] >> 20} MiB at most each"),
        ("pages", f"{facts['page_bytes']} bytes"),
        ("kernels", f"{len(facts['kernels'])} of {total}{missing}"),
    ]
    if facts["num_threads"]:
        lines.insert(3, ("threads", facts["num_threads"]))
        lines.insert(3, ("also", ", ".join(facts["instruction_sets"])))
    return lines
