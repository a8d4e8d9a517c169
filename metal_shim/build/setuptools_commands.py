"""The setuptools commands that put the native library into a wheel or beside an editable install.

Owns where the library goes and how the wheel is tagged. How it is compiled is build.py's business:
this file runs it as a program, so that a checkout, a wheel and an editable install build the same
way.
"""

import gzip
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from setuptools import Command
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.install import install
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parents[2]
# What the README promises beside the package: bin/test, what it needs, and what it tests.
SOURCE_FOLDERS = (
    *("bin", "metal_shim", "shaders", "tests", "docs", "bench", "deploy", ".ci", ".github"),
)
SOURCE_FILES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", ".clang-format", ".gitignore")
LIBRARIES = ("libmarlin_*.so", "libmarlin_*.dylib", "*.metallib")
DEVICE_FOLDER = Path("marlin", "device")


class Build(build):
    """`build`, with the native library as one more step."""

    sub_commands = [*build.sub_commands, ("build_native", None)]

    def run(self):
        # A module that an earlier build left there would go into the wheel.
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildNative(Command):
    """Compile the native library into the build folder, or into the checkout when editable.

    Attributes:
        build_lib: the folder a wheel is made from.
        editable_mode: set by setuptools for an editable install.
    """

    description = "compile libmarlin with the machine's C compiler"
    user_options = [("build-lib=", "b", "folder that the package is built in")]

    def initialize_options(self):
        self.build_lib = None
        self.editable_mode = False

    def finalize_options(self):
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self):
        script = str(Path(__file__).with_name("build.py"))
        completed = subprocess.run([sys.executable, script, "--output", str(self._output())])
        if completed.returncode != 0:
            raise SystemExit("metal-marlin: the native library was not built; the reason is above")

    def get_source_files(self):
        """Every file of the sdist that no Python package holds, relative to the root."""
        found = [path for folder in SOURCE_FOLDERS for path in (ROOT / folder).rglob("*")]
        kept = [path for path in found if path.is_file() and "__pycache__" not in path.parts]
        return [*SOURCE_FILES, *sorted(str(path.relative_to(ROOT)) for path in kept)]

    def get_outputs(self):
        if self.editable_mode:
            return []
        return sorted(str(path) for name in LIBRARIES for path in self._output().glob(name))

    def get_output_mapping(self):
        return {}

    def _output(self):
        return (ROOT if self.editable_mode else Path(self.build_lib).resolve()) / DEVICE_FOLDER


class ReproducibleSdist(sdist):
    """`sdist`; with SOURCE_DATE_EPOCH (seconds) the same bytes whenever and wherever it is made."""

    def make_archive(self, base_name, format, root_dir=None, base_dir=None, owner=None, group=None):
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        if epoch is None or format != "gztar":
            return super().make_archive(base_name, format, root_dir, base_dir, owner, group)

        def plain(member):
            member.mtime, member.uid, member.gid = int(epoch), 0, 0
            member.uname = member.gname = ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            return member

        name = f"{base_name}.tar.gz"
        with (
            open(name, "wb") as file,
            gzip.GzipFile("", "wb", fileobj=file, mtime=int(epoch)) as packed,
            tarfile.open(mode="w", fileobj=packed, format=tarfile.PAX_FORMAT) as archive,
        ):
            for path in sorted(Path(base_dir).rglob("*")):
                archive.add(path, recursive=False, filter=plain)
        return name


class InstallPlatlib(install):
    """`install` into platlib: setuptools takes a package without Extensions for pure Python."""

    def finalize_options(self):
        super().finalize_options()
        self.install_lib = self.install_platlib


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3 on one kind of machine; ctypes loads the library, so no ABI tag."""

    def finalize_options(self):
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self):
        _, _, machine_tag = super().get_tag()
        if sys.platform == "darwin":
            # A universal2 Python would promise both architectures; build.py compiles for one, and
            # for macOS 11 as the oldest.
            machine_tag = f"macosx_11_0_{platform.machine()}"
        return "py3", "none", machine_tag
