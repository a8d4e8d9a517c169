"""What a model is counted to take is what its device then holds, and too much is refused before
anything is read."""

from pathlib import Path

import pytest
from gguf_models import write_gguf
from reference_models import build
from tiny_models import random_tensors, tiny_config, write_folder

from marlin.device import abi
from marlin.device.device import Device
from marlin.engine import load
from marlin.engine.kv_cache import Paging, kv_token_bytes
from marlin.engine.load import Batching, load_model
from marlin.engine.memory import activation_bytes
from marlin.engine.runner import Runner
from marlin.errors import ConfigError
from marlin.models.checkpoint import open_checkpoint
from marlin.models.layers import StepSizes
from marlin.models.model import Model

# In place, put in another order, and repacked; the matrices together are larger than a slab's rest.
KINDS = {".v_proj.": "Q4_0", ".q_proj.": "F16", ".o_proj.": "F32", ".down_proj.": "Q6_K"}
FAMILIES = Path(__file__).parents[1] / "data" / "families"
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "head_dim": 32}


def gguf_model(folder):
    def kind_of(name):
        return next((kind for part, kind in KINDS.items() if part in name), "Q4_1")

    path = folder / "m.gguf"
    write_gguf(path, build("llama", **SIZES), kind_of)
    return path


def folder_model(folder):
    config = tiny_config(vocab_size=5000, qk_norm=True, architecture="qwen3")
    return write_folder(folder / "model", config, random_tensors(config, 0))


def mixture_folder(family):
    def write(folder):
        widths = {"hidden_size": 256, "intermediate_size": 128, "moe_intermediate_size": 128}
        build(family, **widths).save_pretrained(folder / "model")
        return folder / "model"

    write.__name__ = family
    return write


def mixture_gguf(_folder):
    return FAMILIES / "gpt_oss_mxfp4.gguf"


MIXTURES = [*map(mixture_folder, ("qwen3_moe", "glm4_moe", "gpt_oss")), mixture_gguf]


@pytest.fixture
def fresh():
    device = Device(num_threads=1, kind="cpu")
    yield device
    device.close()


def held(device):
    info = device.info()
    return info["allocated_bytes"] + info["mapped_bytes"]


@pytest.mark.parametrize("write", [gguf_model, folder_model, *MIXTURES])
def test_weights_are_counted_as_they_come_to_lie_on_the_device(fresh, tmp_path, write):
    checkpoint = open_checkpoint(write(tmp_path), fresh)
    counted = checkpoint.weight_bytes
    assert held(fresh) == 0
    Model(checkpoint)
    # The RoPE frequencies are the device's, too.
    assert counted <= held(fresh) <= counted + 4096


@pytest.mark.parametrize("write", [folder_model, *MIXTURES[-2:]])
def test_cache_and_activations_are_counted_as_they_come_to_be_allocated(fresh, tmp_path, write):
    model = Model(open_checkpoint(write(tmp_path), fresh))
    before, paging = held(fresh), Paging(8, 16, 8)
    Runner(fresh, model, paging, 64, 3)
    counted = 128 * kv_token_bytes(model.spec)
    counted += activation_bytes(model.spec, StepSizes(64, 3, paging.max_splits))
    # A step's inputs are not counted: they are a few numbers a token, and penalties.
    assert counted < held(fresh) - before < counted + 64 * 1024


def test_memory_is_a_gpus_on_any_device_but_a_cpu(fresh, tmp_path):
    posing = Device(library_path=abi.library_path("cpu"), kind="metal")
    path, paging = folder_model(tmp_path), Paging.contiguous(64)
    for device, expected in ((fresh, 0), (posing, held)):
        runner = Runner(device, Model(open_checkpoint(path, device)), paging, 32, 1)
        assert runner.gpu_memory_bytes == (expected and expected(device))
        runner.close()
    posing.close()


@pytest.fixture
def memory_of(monkeypatch):
    """memory_of(num_bytes): devices say that they may use so much, and loading stops at weights."""

    class Enough(Exception):
        pass

    def limit(num_bytes):
        real_info = Device.info
        monkeypatch.setattr(
            Device, "info", lambda device: real_info(device) | {"memory_bytes": num_bytes}
        )

        def stop(_checkpoint, _context):
            raise Enough

        monkeypatch.setattr(load, "Model", stop)
        return Enough

    return limit


def test_a_cache_that_the_device_cannot_hold_is_refused_before_weights_are_read(
    tmp_path, memory_of
):
    path, fits = folder_model(tmp_path), memory_of(32 << 20)
    with pytest.raises(ConfigError) as caught:
        load_model(path, batching=Batching(1 << 16, 16, 4))
    assert "a KV cache of 65536 blocks of 16 tokens 256 MiB" in caught.value.message
    assert caught.value.message.endswith("the device has 32 MiB")
    with pytest.raises(fits):
        load_model(path, batching=Batching(1 << 10, 16, 4))


def test_a_context_that_is_asked_for_is_refused_and_not_shortened(tmp_path, memory_of):
    config = tiny_config(max_context_tokens=1 << 20)
    path = write_folder(tmp_path / "model", config, random_tensors(config, 0))
    fits = memory_of(32 << 20)
    with pytest.raises(ConfigError, match="a KV cache of 1048576 tokens 256 MiB"):
        load_model(path, max_context_tokens=1 << 20)
    with pytest.raises(fits):
        load_model(path, max_context_tokens=1 << 15)


def test_a_context_that_nobody_asked_for_is_shortened_with_a_warning(tmp_path, memory_of, caplog):
    config = tiny_config(max_context_tokens=1 << 20)
    path = write_folder(tmp_path / "model", config, random_tensors(config, 0))
    with pytest.raises(memory_of(32 << 20)):
        load_model(path)
    assert "context limited to 32768 of the model's 1048576 tokens" in caplog.text


@pytest.mark.parametrize("wanted", [1, 15, 129, 257])
def test_a_context_past_the_model_or_the_blocks_is_refused_with_both_numbers(
    tmp_path, memory_of, wanted
):
    config = tiny_config(max_context_tokens=256)
    path = write_folder(tmp_path / "model", config, random_tensors(config, 0))
    fits = memory_of(32 << 20)
    with pytest.raises(ConfigError) as caught:
        load_model(path, max_context_tokens=wanted, batching=Batching(8, 16, 4))
    assert caught.value.message == (
        f"the context is {wanted} tokens; this model takes 16 to 256, and 8 KV blocks of 16 tokens "
        "hold 128"
    )
    with pytest.raises(fits):
        load_model(path, max_context_tokens=128, batching=Batching(8, 16, 4))


def test_more_blocks_than_the_model_has_context_do_not_make_it_longer(tmp_path, memory_of):
    config = tiny_config(max_context_tokens=256)
    path = write_folder(tmp_path / "model", config, random_tensors(config, 0))
    memory_of(32 << 20)
    with pytest.raises(ConfigError, match="this model takes 16 to 256.* hold 1024"):
        load_model(path, max_context_tokens=257, batching=Batching(64, 16, 4))


@pytest.mark.parametrize("num_blocks", [8, 16])
def test_blocks_that_hold_less_than_the_models_context_are_one_warning(
    tmp_path, memory_of, caplog, num_blocks
):
    config = tiny_config(max_context_tokens=256)
    path = write_folder(tmp_path / "model", config, random_tensors(config, 0))
    with pytest.raises(memory_of(32 << 20)):
        load_model(path, batching=Batching(num_blocks, 16, 4))
    said = [record.getMessage() for record in caplog.records if "context" in record.getMessage()]
    assert len(said) == (num_blocks == 8)
    assert all("limited to 128 of the model's 256 tokens by 8 KV blocks" in line for line in said)


def test_weights_alone_can_be_too_much(tmp_path, memory_of):
    path = folder_model(tmp_path)
    memory_of(1 << 20)
    with pytest.raises(ConfigError, match="its weights take 3 MiB.* the device has 1 MiB"):
        load_model(path)
