"""Every selector that the Metal device sends, every type and constant that it is compiled against,
beside what is published about the real Metal: the metadata of PyPI's pyobjc-framework-Metal.

The wheel is downloaded into pytest's cache and read, never imported.
"""

import shutil

import metal_facts
import pytest
from wheels import wheel_of

PACKAGE = "pyobjc-framework-Metal"
WHEEL_FLAGS = (
    *("--no-deps", "--only-binary=:all:", "--platform", "macosx_10_9_universal2"),
    *("--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"),
)
DOWNLOAD_S = 60
# Properties of Metal's own classes: the metadata leaves out what the runtime tells by itself.
# From Apple's documentation of the class.
CLASS_SELECTORS = {
    "MTLCompileOptions": {"languageVersion", "setLanguageVersion:", "mathMode", "setMathMode:"},
    "MTLComputePipelineDescriptor": {
        *("computeFunction", "setComputeFunction:", "binaryArchives", "setBinaryArchives:"),
    },
    "MTLBinaryArchiveDescriptor": {"url", "setUrl:"},
    "MTLCommandBufferDescriptor": {"errorOptions", "setErrorOptions:"},
    "MTLResidencySetDescriptor": {"initialCapacity", "setInitialCapacity:"},
    "MTLFunctionConstantValues": {"setConstantValue:type:atIndex:"},
}
FOUNDATION_SELECTORS = {
    *("alloc", "init", "retain", "release", "autorelease", "respondsToSelector:"),
    *("stringWithUTF8String:", "initWithFormat:", "UTF8String", "fileURLWithPath:"),
    *("objectForKey:", "arrayWithObject:", "firstObject", "lastObject"),
    *("localizedDescription", "userInfo", "processInfo", "operatingSystemVersionString"),
    *("beginActivityWithOptions:reason:", "endActivity:"),
}


@pytest.fixture(scope="module")
def published(pytestconfig):
    folder = pytestconfig.cache.mkdir("pyobjc-framework-metal")
    return metal_facts.published(wheel_of(folder, PACKAGE, *WHEEL_FLAGS, timeout_s=DOWNLOAD_S))


@pytest.fixture(scope="module")
def declared():
    if shutil.which(metal_facts.CLANG) is None:
        pytest.skip(f"no {metal_facts.CLANG}: apt-get install clang-19")
    return metal_facts.declared()


@pytest.fixture(scope="module")
def compiled(declared, checkout, load_script, tmp_path_factory):
    """Selectors of the shim, compiled for a Mac without a warning, with an SDK or none."""
    if shutil.which(metal_facts.OBJDUMP) is None:
        pytest.skip(f"no {metal_facts.OBJDUMP}: apt-get install llvm-19")
    folder = tmp_path_factory.mktemp("mac")
    header = load_script("metal_shim/build/build_metal.py").source_header("kernel void k() {}\n")
    (folder / "shader_source.h").write_text(header)
    includes = (folder, checkout / "metal_shim", checkout / "shaders")
    sources = sorted((checkout / "metal_shim" / "metal").glob("*.m"))

    def selectors(sdk=None):
        sent = [metal_facts.sent_selectors(p, includes, folder / "metal.o", sdk) for p in sources]
        return set().union(*sent)

    return selectors


@pytest.fixture(scope="module")
def sent(compiled):
    return compiled()


# The metadata has one entry for the methods of this name of all protocols; MTLIOCommandBuffer's
# status is signed.
SHARED_NAMES = {("MTLCommandBuffer", "status")}


def is_class_selector(owner, selector):
    return selector in CLASS_SELECTORS.get(owner, ())


def test_every_constant_has_its_published_value(declared, published):
    values = {name: published.constants.get(name) for name in declared.constants}
    assert declared.constants == values and len(values) > 40


def test_the_key_of_an_errors_passes_is_published(published):
    assert "MTLCommandBufferEncoderInfoErrorKey" in published.names


def test_every_method_is_published_with_the_same_types(declared, published):
    checked = 0
    for selector, owners in declared.methods.items():
        for owner, (result, parameters) in owners.items():
            known = published.methods.get(selector, {})
            told = known.get(owner) or known.get("NSObject")  # where protocols' methods are
            if told is None:
                assert is_class_selector(owner, selector), f"-[{owner} {selector}]"
                continue
            pairs = zip((told[0], *told[1]), (result, *parameters), strict=True)
            differ = [(want, have) for want, have in pairs if want and want != have]
            if (owner, selector) in SHARED_NAMES:
                differ = [pair for pair in differ if set(pair) != {"q", "Q"}]
            assert not differ, f"-[{owner} {selector}] (published, ours): {differ}"
            checked += 1
    assert checked > 45


def test_the_device_sends_nothing_that_is_not_published(sent, declared, published):
    known = FOUNDATION_SELECTORS.union(*CLASS_SELECTORS.values()) | set(published.methods)
    assert sent - known == set()
    assert sent & set(declared.methods) and len(sent) > 45


def test_what_the_metadata_leaves_out_is_declared_here_to_the_letter(declared):
    listed = {(owner, name) for owner, names in CLASS_SELECTORS.items() for name in names}
    assert {pair for pair in listed if pair[0] not in declared.methods.get(pair[1], ())} == set()


def test_a_selector_that_metal_lacks_would_be_found(published):
    assert "memoryBarrierWithScope:" in published.methods
    assert "memoryBarrierWithScopes:" not in published.methods


RESIDENCY_SELECTORS = {
    *("newResidencySetWithDescriptor:error:", "addResidencySet:", "removeResidencySet:"),
    *("addAllocation:", "removeAllocation:", "requestResidency", "endResidency"),
    # and what only its requests ask for, and macOS 15's word for safe arithmetic
    *("commandBuffer", "blitCommandEncoder", "fillBuffer:range:value:", "setMathMode:"),
}


def test_the_macos_14_sdk_compiles_it_without_residency_sets(compiled, sent):
    assert RESIDENCY_SELECTORS < sent and "respondsToSelector:" in sent
    assert sent - compiled(sdk=140500) == RESIDENCY_SELECTORS | {"respondsToSelector:"}


@pytest.mark.parametrize("sdk", [150000, 260000])
def test_a_newer_sdk_compiles_all_of_it(compiled, sent, sdk):
    assert compiled(sdk=sdk) == sent
