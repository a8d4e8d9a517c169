"""Every function of Metal's library that our shaders call is one that Apple's own compiler has made
code for: its name is in the AIR of MLX's library, which PyPI's mlx-metal wheel ships.

Names in AIR carry their types ("air.simd_sum.f32"), so that an overload that does not exist shows.
The wheel is downloaded into pytest's cache and read, never imported.
"""

import re
import zipfile

import pytest
from wheels import wheel_of

PACKAGE = "mlx-metal==0.32.4"
WHEEL_FLAGS = ("--no-deps", "--only-binary=:all:", "--platform", "macosx_15_0_arm64")
MEMBER = "mlx/lib/mlx.metallib"

# What each becomes, of the types that we use it with.
AIR = {
    "dot": ["dot.v4f32"],
    "exp": ["exp.f32"],
    "exp2": ["exp2.f32"],
    "fabs": ["fabs.f32"],
    "fma": ["fma.f32"],
    "log": ["log.f32"],
    "max": ["max.u.i32", "max.u.i64", "fmax.f32"],
    "min": ["min.u.i32", "fmin.f32"],
    "precise::cos": ["cos.f32"],
    "precise::exp": ["exp.f32"],
    "precise::rsqrt": ["rsqrt.f32"],
    "rsqrt": ["rsqrt.f32"],
    "precise::sin": ["sin.f32"],
    "simd_any": ["simd_any"],
    "simd_max": ["simd_max.f32", "simd_max.u.i32"],
    "simd_min": ["simd_min.u.i32"],
    "simd_sum": ["simd_sum.f32", "simd_sum.u.i32"],
    "simd_prefix_exclusive_sum": ["simd_prefix_exclusive_sum.u.i32"],
    "simd_prefix_inclusive_sum": ["simd_prefix_inclusive_sum.u.i32"],
    "simd_shuffle": ["simd_shuffle.u.v2i32"],
    "simd_shuffle_xor": ["simd_shuffle_xor.f32"],
    "simdgroup_barrier": ["simdgroup.barrier"],
    "threadgroup_barrier": ["wg.barrier"],
    "make_filled_simdgroup_matrix": ["simdgroup_matrix_8x8_init_filled"],
    "simdgroup_load": ["simdgroup_matrix_8x8_load"],
    "simdgroup_store": ["simdgroup_matrix_8x8_store"],
    "simdgroup_multiply_accumulate": [
        "simdgroup_matrix_8x8_multiply_accumulate.v64f32.v64f32.v64f32"
    ],
}
# In Apple's specification (Metal Shading Language 3.1), and in no kernel of MLX's: nothing shows
# that these overloads exist but that text.
UNSEEN = {
    *("atomic_fetch_add_explicit", "atomic_fetch_min_explicit"),
    *("atomic_load_explicit", "atomic_store_explicit"),
    *("simd_broadcast", "simd_shuffle_up"),
}
# Instructions of LLVM's own.
INSTRUCTIONS = {"as_type", "isnan", "precise::divide"}


@pytest.fixture(scope="module")
def air(pytestconfig):
    """The bytes of MLX's library; LLVM's bitcode has names as they are."""
    folder = pytestconfig.cache.mkdir("mlx-metal")
    return zipfile.ZipFile(wheel_of(folder, PACKAGE, *WHEEL_FLAGS)).read(MEMBER)


@pytest.fixture(scope="module")
def called(checkout):
    """Functions that the shaders call and do not define, of those that our stand-in has."""
    paths = sorted((checkout / "shaders").iterdir())
    text = "\n".join(path.read_text() for path in paths if path.suffix in (".metal", ".h"))
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    name = r"((?:precise::)?\b[a-z]\w*)\s*(?:<[^<>;(){}]*>)?\("
    names = set(re.findall(rf"(?<![\w.:\[]){name}", text))  # no methods, no attributes
    defined = set(re.findall(r"\b(?:inline|static) [\w:<>*& \n]*?\b(\w+)\(", text))
    stand_in = checkout / "tests" / "metal" / "msl" / "include"
    headers = "\n".join(path.read_text() for path in stand_in.rglob("*") if path.is_file())
    known = {name for name in names if re.search(rf"\b{name.split(':')[-1]}\b", headers)}
    types = r"u?(char|short|int|long)\d?|half\d?|float\d?|bool|simdgroup_\w+8x8|u?int32_t"
    words = {"if", "for", "while", "switch", "return", "sizeof", "static_assert", "decltype"}
    return {n for n in known - defined - words if not re.fullmatch(types, n)}


@pytest.mark.downloads
def test_every_builtin_of_the_shaders_is_in_apples_air(air, called):
    listed = {f"air.{name}" for name in called & AIR.keys() for name in AIR[name]}
    assert {name for name in listed if name.encode() not in air} == set()
    assert len(listed) > 25


def test_every_builtin_of_the_shaders_is_listed(called):
    assert called == AIR.keys() | UNSEEN | INSTRUCTIONS


@pytest.mark.downloads
def test_what_is_listed_as_unseen_is_unseen(air):
    """So that an entry leaves the list when MLX begins to use it."""
    for name in ("air.simd_broadcast", "air.simd_shuffle_up.", "air.atomic.global.min.u.i32"):
        assert name.encode() not in air
