"""What a checkpoint holds beside the language model: left unread, and named in the log."""

import gguf_builder
import numpy as np
from test_checkpoint_errors import (  # noqa: F401
    change_config,
    change_tensors,
    device,
    folder,
    refusal,
    write_gguf,
)

from marlin.models.checkpoint import open_checkpoint
from marlin.models.model import Model


def test_towers_and_layers_that_guess_ahead_are_left_unread_and_named(
    folder,  # noqa: F811
    device,  # noqa: F811
    caplog,
):
    def add(tensors):
        for name in ("model.vision_tower.a.weight", "vision_tower.b.weight", "visual.c.weight"):
            tensors[name] = np.zeros((3, 5), np.float32)
        tensors["model.layers.2.eh_proj.weight"] = np.zeros((64, 128), np.float32)

    change_tensors(folder, add)
    assert "model.layers.2.eh_proj.weight" in refusal(folder, device)
    change_config(folder, num_nextn_predict_layers=1)
    with caplog.at_level("INFO"):
        assert len(Model(open_checkpoint(folder, device)).spec.layers) == 2
    (text,) = [r.getMessage() for r in caplog.records if "left unread" in r.getMessage()]
    for part in ("model.vision_tower (1 tensors)", "vision_tower (1", "visual (1",
                 "model.layers.2, a layer that guesses tokens ahead (1"):  # fmt: skip
        assert part in text


def test_a_gguf_with_a_tower_and_a_layer_that_guesses_ahead_is_the_model_alone(
    device,  # noqa: F811
    tmp_path,
    caplog,
):
    def add(tensors):
        for name in ("v.blk.0.attn_q.weight", "mm.0.weight", "blk.2.nextn.eh_proj.weight"):
            tensors[name] = ("F32", (2, 32), bytes(256))

    metadata = [("llama.nextn_predict_layers", "u32", 1)]
    path = write_gguf(tmp_path / "m.gguf", add, metadata, blocks=3)
    with caplog.at_level("INFO"):
        assert len(Model(open_checkpoint(path, device)).spec.layers) == 2
    (text,) = [r.getMessage() for r in caplog.records if "left unread" in r.getMessage()]
    assert "v (1 tensors)" in text and "mm (1" in text and "blk.2, a layer that guesses" in text


def test_a_file_that_only_reads_images_is_refused_as_such(device, tmp_path):  # noqa: F811
    entries = [("general.architecture", "str", "clip")]
    (tmp_path / "mmproj.gguf").write_bytes(gguf_builder.build(entries))
    text = refusal(tmp_path / "mmproj.gguf", device)
    assert "'clip'; expected a language model: this file reads images" in text
