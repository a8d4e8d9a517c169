"""A small checkout for the scripts of bin/, whose Python is a shell script that notes its calls.

Owns what the scripts look at in a checkout. Nothing in it installs, downloads or serves.
"""

import os
import shutil
import subprocess

MODEL = "/models/My-Model.Q4_1.gguf"
FAKE_PYTHON = """#!/bin/sh
case "$*" in
    *version_info*) exit ;;
    "-c import pip") exit ;;
    -V) echo "Python 3.12.0"; exit ;;
    *fetch_model.py) echo "$MODEL"; exit ;;
esac
{ for word in "$@"; do printf '<%s>' "$word"; done; echo; } >>"$LOG"
case "$*" in "-m pip "*) pwd >"$LOG.pip"; exit "${PIP_EXIT:-0}" ;;
*build.py) exit "${BUILD_EXIT:-0}" ;;
"-m ruff"*) exit "${LINT_EXIT:-0}" ;; esac
"""
FAKE_CLI = """import sys
def main():
    print(sys.prefix)
    print(sys.argv[1:])
"""


def python_modules(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.py").write_text("")


class Checkout:
    """bin/ and the files that decide about installing, beside a fake .venv."""

    def __init__(self, root, real):
        self.root = root
        self.log = root.parent / "log"
        shutil.copytree(real / "bin", root / "bin", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("marlin", "metal_shim/build"):
            (root / name).mkdir(parents=True)
        for name in ("pyproject.toml", "setup.cfg", "metal_shim/build/setuptools_commands.py"):
            (root / name).write_text("")
        (root / "marlin" / "__init__.py").write_text("")
        (root / "marlin" / "cli.py").write_text(FAKE_CLI)
        shutil.copy(real / "marlin" / "__main__.py", root / "marlin")

    def add_fake_venv(self):
        python = self.root / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(FAKE_PYTHON)
        python.chmod(0o755)

    def run(self, script, *arguments, **environ):
        """(finished process, the calls of the fake Python in this run, `<word>` for each word)."""
        self.log.write_text("")
        done = subprocess.run(
            [str(self.root / "bin" / script), *arguments],
            env={"PATH": os.environ["PATH"], "LOG": str(self.log), "MODEL": MODEL, **environ},
            cwd=self.root.parent,
            capture_output=True,
            text=True,
        )
        return done, self.log.read_text().splitlines()

    def installs(self, script, *arguments, **environ):
        """What pip was told to install, for each time it ran."""
        _, calls = self.run(script, *arguments, **environ)
        return [call for call in calls if call.startswith("<-m><pip>")]
