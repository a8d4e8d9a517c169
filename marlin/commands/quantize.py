"""`metal-marlin quantize SRC DST`: a checkpoint becomes a native folder.

Owns the command: its options, what it refuses, progress, and the closing report. The folder is made
under a temporary name beside DST and renamed at the end, so DST is whole or absent; an interrupted
run leaves it there for the next (unfinished.py).
"""

import os
import shlex
import shutil
import sys
import time
from collections import Counter
from dataclasses import astuple, dataclass
from pathlib import Path

from marlin import __version__
from marlin.commands.parser import typed
from marlin.commands.progress import Progress
from marlin.commands.unfinished import Unfinished
from marlin.device.device import Device
from marlin.engine.calibration import METHODS, Calibration, convert_layers, texts_of
from marlin.engine.mixing import CHOICES, MIX_TOKENS, choose, sensitivities
from marlin.errors import ConfigError
from marlin.models.source import open_source
from marlin.option_values import number, one_of, whole_number
from marlin.weights.convert import RoleError, convert, plan_entry
from marlin.weights.formats import FORMATS
from marlin.weights.formats import quantize_native as pack_nearest
from marlin.weights.kinds import GROUP_SIZES
from marlin.weights.native import MIXED, NativeWriter, quantization_object

# Room for what the plan does not count: headers, tokenizer files, config.
SPARE_DISK_BYTES = 128 << 20
# Between notes of what is done, which wait for the disk.
NOTE_S = 5.0
# Tokens to calibrate with, at most: more than the default text has by most tokenizers.
DEFAULT_TOKENS = 8192
DEFAULT_FORMAT, DEFAULT_GROUP_SIZE = "iq4", 32
# Kinds that kernels read and nothing writes, and what takes as many bits and loses less.
UNWRITTEN = {"fp8": "int8", "nf4": "iq4"}
DEFAULT_TEXT = Path(__file__).with_name("calibration.txt")


@dataclass(frozen=True, slots=True)
class Report:
    """What a conversion came to.

    Attributes:
        source_bytes, result_bytes: of the tensors, before and after.
        bits_per_weight: of the quantized tensors, scales and biases included.
        errors: {role: RoleError}.
        narrowed: {group size: matrices that it was taken for, since the one asked for does not
            divide them}.
        layer_bits: bits_per_weight of the layers' matrices alone.
        forms: {(format, group size): how many of these}.
    """

    source_bytes: int
    result_bytes: int
    bits_per_weight: float
    errors: dict[str, RoleError]
    narrowed: dict[int, int]
    layer_bits: float
    forms: dict[tuple[str, int], int]


def _format(text):
    if text in UNWRITTEN:
        raise ValueError(f"is read and not written: take {UNWRITTEN[text]}, which loses less")
    return one_of(FORMATS)(text)


def add_arguments(parser):
    """Declare the command's options on a Parser."""
    parser.add_argument("source", metavar="SRC", help="folder of safetensors, or a .gguf file")
    parser.add_argument("destination", metavar="DST", help="folder to create")
    parser.add_argument(
        "--format",
        type=typed(_format),
        metavar="|".join(FORMATS),
        help=f"of the weights (default: {DEFAULT_FORMAT})",
    )
    sizes = tuple(map(str, GROUP_SIZES))
    parser.add_argument(
        "--group-size",
        type=typed(lambda text: int(one_of(sizes)(text))),
        metavar="|".join(sizes),
        help=f"weights that share a scale (default: {DEFAULT_GROUP_SIZE})",
    )
    parser.add_argument(
        "--mixed",
        type=typed(number),
        metavar="BITS",
        help="instead of one format: give each matrix the one that spends so many bits a weight of "
        "the layers, on the average, where they change answers least",
    )
    _add_calibration(parser)


def _add_calibration(parser):
    parser.add_argument(
        "--method",
        type=typed(one_of(("nearest", *METHODS))),
        metavar="|".join(("nearest", *METHODS)),
        help="how codes are chosen: nearest looks at the weights alone, weighted at how large "
        "their inputs are, gptq at how inputs go together, too (default: nearest, or with "
        "--calibration weighted, or with --mixed gptq)",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="text that shows what inputs are like (default: one that comes with the program)",
    )
    parser.add_argument(
        "--calibration-tokens",
        type=typed(whole_number(1)),
        default=DEFAULT_TOKENS,
        metavar="N",
        help="tokens of it that are read (default: %(default)s)",
    )


def run(args):
    """Run the command and return exit status 0, or raise a MarlinError that says what is wrong."""
    progress = Progress(sys.stderr, "quantized")
    calibration = _calibration(args)
    form = args.format or DEFAULT_FORMAT, args.group_size or DEFAULT_GROUP_SIZE
    if args.mixed is not None:
        if args.format or args.group_size:
            raise ConfigError("--mixed chooses --format and --group-size: leave them out")
        form = MIXED, DEFAULT_GROUP_SIZE
    report = quantize(args.source, args.destination, *form, progress, calibration)
    print(_describe(report, args.destination, *form))
    return 0


def _calibration(args):
    is_mixed = args.mixed is not None
    method = args.method or ("gptq" if is_mixed else "weighted" if args.calibration else "nearest")
    if method == "nearest" and not is_mixed:
        if args.calibration:
            raise ConfigError("--method nearest reads no --calibration: leave one of them out")
        return None
    path = args.calibration or DEFAULT_TEXT
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--calibration {path} cannot be read as text: {error}") from None
    return Calibration(method, text, args.calibration_tokens, args.mixed)


def quantize(source, destination, format, group_size, progress, calibration=None):
    """Convert a checkpoint into a native folder.

    Args:
        source: a Hugging Face folder of safetensors (F32, F16 or BF16), or a .gguf file.
        destination: a folder that does not exist or is empty.
        format: one of FORMATS, or MIXED; group_size: one of GROUP_SIZES.
        progress: called as progress(values done, values in all).
        calibration: Calibration, or None to look at weights alone; with mixed_bits for MIXED.

    Returns:
        Report.

    Raises:
        ConfigError: format, group size or destination cannot be used, or the disk is too small.
        ModelFileError: the checkpoint cannot be converted. Nothing is left behind, but by an
            interruption.
    """
    source, destination = Path(source), Path(destination).resolve()
    _check_request(source, destination, format, group_size)
    checkpoint = open_source(source)
    if format != MIXED:
        entries = [plan_entry(tensor, format, group_size) for tensor in checkpoint.tensors]
        _check_disk(destination, sum(entry.num_bytes for entry in entries))
    asked = _asked(checkpoint, format, group_size, calibration)
    unfinished = Unfinished(destination.with_name(f".{destination.name}.partial"), asked)
    try:
        if unfinished.is_new:
            quantization = quantization_object(format, group_size)
            checkpoint.write_companions(unfinished.folder, quantization)
        if format == MIXED:
            entries = _mix(unfinished, checkpoint, calibration)
            _check_disk(destination, sum(entry.num_bytes for entry in entries))
        errors = _convert_into(unfinished, checkpoint, entries, progress, calibration)
        unfinished.finish(destination)
    except Exception:
        unfinished.remove()
        raise
    except BaseException:
        unfinished.leave()
        raise
    return _report(checkpoint, entries, errors, 0 if format == MIXED else group_size)


def _check_request(source, destination, format, group_size):
    if format not in (*FORMATS, MIXED):
        raise ConfigError(f"format {format!r} is unknown; {', '.join(FORMATS)} are known")
    if group_size not in GROUP_SIZES:
        known = ", ".join(map(str, GROUP_SIZES))
        raise ConfigError(f"group size {group_size!r} is not supported; {known} are")
    if not source.exists():
        raise ConfigError(f"{source} does not exist")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ConfigError(f"{destination} exists and is not an empty folder; choose another")
    if source.resolve() in (destination, *destination.parents):
        raise ConfigError(f"{destination} lies inside {source}; choose a folder outside the source")


def _check_disk(destination, num_bytes):
    parent = next(path for path in destination.parents if path.exists())
    free, needed = shutil.disk_usage(parent).free, num_bytes + SPARE_DISK_BYTES
    if free < needed:
        message = f"the result needs {_megabytes(needed)} and {parent} has {_megabytes(free)} free"
        raise ConfigError(message)


def _mix(unfinished, checkpoint, calibration):
    """The NativeEntries of a mix; what is chosen is kept for a run that goes on with this one."""
    packed = {
        tensor.name
        for tensor in checkpoint.tensors
        if tensor.role in ("attention", "mlp") and plan_entry(tensor, *CHOICES[0]).group_size
    }

    def make():
        text = texts_of(checkpoint.load_tokenizer().encode(calibration.text), MIX_TOKENS)
        progress = Progress(sys.stderr, "weighed")
        device = Device()
        try:
            found = sensitivities(device, checkpoint, packed, text, progress)
        finally:
            device.close()
        return choose(found, calibration.mixed_bits)

    chosen = unfinished.keep("mix", make)
    return [
        plan_entry(tensor, *chosen.get(tensor.name, CHOICES[0])) for tensor in checkpoint.tensors
    ]


def _asked(checkpoint, format, group_size, calibration):
    """All that decides what a folder becomes."""
    paths = sorted({tensor.info.path for tensor in checkpoint.tensors})
    files = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths]
    return [__version__, files, format, group_size, calibration and astuple(calibration)]


def _convert_into(unfinished, checkpoint, entries, progress, calibration):
    total = sum(tensor.num_values for tensor in checkpoint.tensors)
    pairs = list(zip(checkpoint.tensors, entries, strict=True))
    work = {tensor.name: (tensor, entry) for tensor, entry in pairs}
    done = sum(work[name][0].num_values for name in unfinished.done)
    writer = NativeWriter(unfinished.folder, entries)
    errors = {role: RoleError(*sums) for role, sums in unfinished.errors.items()}
    noted_s = time.monotonic()

    def advance(num_values):
        nonlocal done
        done += num_values
        progress(done, total)

    def note(names, layer=0, states=()):
        nonlocal noted_s
        unfinished.done |= names
        if layer or time.monotonic() - noted_s >= NOTE_S:
            writer.sync()
            sums = {role: (e.squared_error, e.squared_norm) for role, e in errors.items()}
            unfinished.note(unfinished.done, sums, layer, states)
            noted_s = time.monotonic()

    def convert_one(name, pack=pack_nearest, see=None):
        tensor, entry = work[name]
        convert([tensor], [entry], writer, os.cpu_count() or 1, advance, errors, pack, see)

    try:
        if calibration is not None and calibration.method != "nearest":
            packed = {name for name, (_, entry) in work.items() if entry.group_size}
            _convert_layers(unfinished, checkpoint, packed, calibration, convert_one, note)
        for name in work:
            if name not in unfinished.done:
                convert_one(name)
                note({name})
        return errors
    finally:
        writer.close()


def _convert_layers(unfinished, checkpoint, packed, calibration, convert_one, note):
    begin = unfinished.layer, unfinished.states
    device = Device()
    try:
        convert_layers(device, checkpoint, packed, calibration, convert_one, begin, note)
    finally:
        device.close()


def _bits(entries):
    num_weights = sum(entry.shape[0] * entry.shape[1] for entry in entries)
    return 8 * sum(entry.num_bytes for entry in entries) / num_weights if num_weights else 0.0


def _report(checkpoint, entries, errors, group_size):
    packed = [entry for entry in entries if entry.group_size]
    pairs = zip(checkpoint.tensors, entries, strict=True)
    inner = [entry for tensor, entry in pairs if tensor.role in ("attention", "mlp")]
    narrowed = [entry for entry in inner if 0 < entry.group_size < group_size]
    return Report(
        source_bytes=checkpoint.num_bytes,
        result_bytes=sum(entry.num_bytes for entry in entries),
        bits_per_weight=_bits(packed),
        errors=errors,
        narrowed=Counter(entry.group_size for entry in narrowed),
        layer_bits=_bits([entry for entry in inner if entry.group_size]),
        forms=Counter((entry.format, entry.group_size) for entry in inner if entry.group_size),
    )


def _describe(report, destination, format, group_size):
    lines = [
        f"{destination}: {format}" + (f", groups of {group_size}" if format != MIXED else ""),
        f"  weights before   {_megabytes(report.source_bytes)}",
        f"  weights after    {_megabytes(report.result_bytes)}",
        f"  bits a weight    {report.bits_per_weight:.2f}",
    ]
    if format == MIXED:
        lines.append(f"  of layers        {report.layer_bits:.2f}")
        for (kind, size), count in sorted(report.forms.items()):
            lines.append(f"    {count} matrices {kind}, groups of {size}")
    for role, error in report.errors.items():
        lines.append(f"  {role:<16} relative RMS error {error.relative_rms:.2g}")
    for size, count in report.narrowed.items():
        why = f"{group_size} do not divide them"
        lines.append(f"  {count} matrices in groups of {size}: {why}")
    lines.append(f"Serve it with: metal-marlin serve {shlex.quote(str(destination))}")
    return "\n".join(lines)


def _megabytes(num_bytes):
    return f"{num_bytes / 1e6:.1f} MB"
