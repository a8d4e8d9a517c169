"""A copy of the checkout, with a Python of its own, in which mutants live; the checkout stays.

Owns the folder. Knows no tests and no mutants.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
_BUILT = ("marlin/device/*.so", "build/native/**/*")


def refresh(root):
    """Make the copy what the checkout is now, but for files that git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=CHECKOUT, capture_output=True, check=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    built = [str(path.relative_to(CHECKOUT)) for glob in _BUILT for path in CHECKOUT.glob(glob)]
    names = {name for name in [*listed, *built] if name and (CHECKOUT / name).is_file()}
    for name in names:
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_file() or target.read_bytes() != (CHECKOUT / name).read_bytes():
            shutil.copy2(CHECKOUT / name, target)
    for folder in ("marlin", "metal_shim", "shaders", "tests"):
        for path in (root / folder).rglob("*"):
            kept = path.suffix in (".pyc", ".o", ".so") or ".hypothesis" in path.parts
            if path.is_file() and not kept and str(path.relative_to(root)) not in names:
                path.unlink()
    if not (root / ".venv").exists():
        _make_python(root)


def run_inside(root, script):
    """Run a program of this folder again, on the copy's Python, and exit as it does."""
    (root / ".mutate").mkdir(exist_ok=True)
    (root / ".mutate" / "hits").unlink(missing_ok=True)
    copied = root / Path(script).resolve().relative_to(CHECKOUT)
    command = [root / ".venv" / "bin" / "python", copied, "--inside", *sys.argv[1:]]
    sys.exit(subprocess.run(command, cwd=root).returncode)


def _make_python(root):
    command = [sys.executable, "-m", "venv", "--without-pip", str(root / ".venv")]
    subprocess.run(command, check=True)
    packages = [path for path in sys.path if path.endswith("site-packages")]
    here = root / Path(__file__).relative_to(CHECKOUT).parent
    lines = [
        str(root),  # before what is installed, which may be another checkout
        *packages,
        f"import sys; sys.path.append({str(here)!r}); import probes; probes.follow({str(root)!r})",
    ]
    (folder,) = (root / ".venv" / "lib").glob("python*/site-packages")
    (folder / "mutation.pth").write_text("\n".join(lines) + "\n")


def end_processes(root, group):
    """Kill what a run left: its process group, and what runs on the copy's own Python."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
    python = str(root / ".venv" / "bin").encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in (os.getpid(), os.getppid()):
            continue
        try:
            if python in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
        except (OSError, ProcessLookupError):
            continue
