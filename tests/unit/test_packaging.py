"""The sdist and the wheel: what they hold and how they are tagged.

Both are built once, the wheel out of the sdist, from the checkout's own files with stand-in C
sources: what is compiled is another test's business.
"""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

FILES = (
    *("pyproject.toml", "setup.cfg", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"),
    *("SECURITY.md", ".clang-format", ".gitignore"),
)
FOLDERS = ("marlin", "bin", "tests", "docs", "bench", "deploy", ".ci", ".github")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.so", "*.dylib", "*.metallib")


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def copy_sources(checkout, root):
    root.mkdir()
    for name in FILES:
        shutil.copy(checkout / name, root)
    for name in FOLDERS:
        shutil.copytree(checkout / name, root / name, ignore=LEFT_OUT)
    shim = root / "metal_shim"
    for folder in (shim / "build", shim / "cpu", root / "shaders"):
        folder.mkdir(parents=True)
    for name in ("build/build.py", "build/setuptools_commands.py"):
        shutil.copy(checkout / "metal_shim" / name, shim / name)
    (shim / "cpu" / "cpu.c").write_text('#include "params.h"\nint marlin_x = MARLIN_X;\n')
    (shim / "cpu" / "kernels_x.c").write_text("typedef int nothing;\n")
    (root / "shaders" / "params.h").write_text("#define MARLIN_X 1\n")
    # What earlier work leaves in a checkout, and no archive may pick up.
    (root / "marlin" / "device" / "libmarlin_cpu.so").write_text("of another machine")
    stale = root / "build" / "lib" / "marlin"
    stale.mkdir(parents=True)
    (stale / "removed_long_ago.py").write_text("")


@pytest.fixture(scope="module")
def sdist(checkout, tmp_path_factory):
    root = tmp_path_factory.mktemp("packaging") / "a checkout"
    copy_sources(checkout, root)
    build = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    run(sys.executable, "-c", build, cwd=root)
    (archive,) = (root / "dist").iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation")
    run(*pip, "--wheel-dir", str(folder), str(sdist), cwd=folder)
    (archive,) = folder.iterdir()
    return archive


def sdist_names(sdist):
    with tarfile.open(sdist) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def wheel_names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.slow
@pytest.mark.native
def test_the_sdist_holds_all_that_building_and_running_a_checkout_needs(sdist):
    assert sdist_names(sdist) >= {
        *("pyproject.toml", "setup.cfg", "README.md", "LICENSE", "CHANGELOG.md"),
        *("metal_shim/build/build.py", "metal_shim/build/setuptools_commands.py"),
        *("metal_shim/cpu/cpu.c", "metal_shim/cpu/kernels_x.c"),
        *("shaders/params.h", "marlin/__init__.py"),
        *("bin/demo", "bin/test", "bin/metal-marlin", "bin/setup-env", "bin/fetch_model.py"),
    }


@pytest.mark.slow
@pytest.mark.native
def test_the_sdist_holds_what_its_readme_points_to_and_every_test(sdist, checkout):
    names = sdist_names(sdist)
    for folder in ("tests", "docs", "bench", "deploy", ".ci", ".github"):
        found = [path for path in (checkout / folder).rglob("*") if path.is_file()]
        wanted = {
            str(path.relative_to(checkout)) for path in found if "__pycache__" not in path.parts
        }
        assert wanted and wanted <= names, folder
    readme = (checkout / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"`((?:docs|tests|bin|metal_shim)/[\w./-]+|[A-Z]+\.md)`", readme))
    assert "docs/serving.md" in linked
    assert linked - {"metal_shim/marlin.h"} <= names  # the C sources here are stand-ins


@pytest.mark.slow
@pytest.mark.native
def test_the_sdist_holds_nothing_compiled(sdist):
    compiled = (".so", ".dylib", ".o", ".pyc")
    assert [name for name in sdist_names(sdist) if name.endswith(compiled)] == []


@pytest.mark.slow
@pytest.mark.native
def test_the_wheel_is_for_any_python_3_on_this_platform(wheel):
    python, abi, platform = wheel.stem.split("-")[-3:]
    assert (python, abi) == ("py3", "none")
    assert platform != "any"
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/WHEEL")]
        assert "Root-Is-Purelib: false" in archive.read(name).decode().splitlines()


@pytest.mark.slow
@pytest.mark.native
def test_the_wheel_holds_the_package_with_its_library_and_no_more(wheel, checkout):
    sources = {str(path.relative_to(checkout)) for path in (checkout / "marlin").rglob("*.py")}
    sources |= {f"marlin/commands/{name}" for name in ("calibration.txt", "selftest.safetensors")}
    sources.add("marlin/server/api/page.html")
    sources.add("marlin/py.typed")
    names = {name for name in wheel_names(wheel) if ".dist-info/" not in name}
    suffix = "dylib" if sys.platform == "darwin" else "so"
    library = f"marlin/device/libmarlin_cpu.{suffix}"
    (page,) = [name for name in names if name.endswith(".data/data/share/man/man1/metal-marlin.1")]
    names.remove(page)
    assert names >= sources | {library}
    metal = {f"marlin/device/{name}" for name in ("libmarlin_metal.dylib", "marlin.metallib")}
    assert names - sources - {library} <= (metal if suffix == "dylib" else set())
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(library) != b"of another machine"
        assert archive.read(page) == (checkout / "docs/metal-marlin.1").read_bytes()


@pytest.mark.slow
@pytest.mark.native
def test_the_wheel_brings_the_command_and_three_dependencies(wheel):
    with zipfile.ZipFile(wheel) as archive:
        texts = {name.rsplit("/", 1)[-1]: archive.read(name) for name in archive.namelist()}
    entry_points = configparser.ConfigParser()
    entry_points.read_string(texts["entry_points.txt"].decode())
    assert dict(entry_points["console_scripts"]) == {"metal-marlin": "marlin.__main__:main"}
    needs = [
        line.partition(": ")[2].split(">")[0]
        for line in texts["METADATA"].decode().splitlines()
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    ]
    assert needs == ["numpy", "safetensors", "tokenizers"]


@pytest.mark.slow
def test_with_a_date_both_archives_are_the_same_bytes_whenever_they_are_made(checkout, tmp_path):
    """Of two checkouts at two places, with other times and modes of files."""
    made = []
    for number in range(2):
        root = tmp_path / f"checkout {number}"
        copy_sources(checkout, root)
        for path in root.rglob("*.py"):
            os.utime(path, (1_600_000_000 + number, 1_600_000_000 + number))
        build = "from setuptools.build_meta import build_sdist, build_wheel\n"
        build += "build_sdist('dist')\nbuild_wheel('dist')"
        environ = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
        subprocess.run(
            [sys.executable, "-c", build], cwd=root, env=environ, check=True, capture_output=True
        )
        made.append({path.name: path.read_bytes() for path in (root / "dist").iterdir()})
    assert len(made[0]) == 2 and made[0].keys() == made[1].keys()
    assert [name for name in made[0] if made[0][name] != made[1][name]] == []
