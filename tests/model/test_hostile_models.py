"""Whole models of other writers with something changed in their headers: planned, or refused in one
sentence. METAL_MARLIN_FUZZ_CASES says how many of each (20,000 take minutes)."""

import copy
import json
import os
import random
import shutil
from pathlib import Path

import pytest
from gguf_models import write_gguf
from mixture_families import small_config
from reference_models import build
from test_gguf_parity import SIZES
from test_hostile_formats import assert_one_sentence, change_json
from tiny_models import random_tensors, tiny_family_config, write_folder

from marlin.errors import ModelFileError
from marlin.models.plan_folder import plan_folder
from marlin.models.plan_gguf import plan_gguf
from marlin.weights.gguf_parts import read_gguf

NUM_CASES = int(os.environ.get("METAL_MARLIN_FUZZ_CASES", "40"))
DATA = Path(__file__).parents[1] / "data"
FOLDERS = {
    "MLX, dense": "mlx/gemma3_text",
    "MLX, Gemma 4": "mlx_hybrid/gemma4_text",
    "MLX, states in a wrapper": "mlx_hybrid/qwen3_5_moe_wrapped",
    "MLX, experts": "mlx_experts/qwen3_moe",
}
LATENT = "latent attention"
FILES = ("mixtral", "gpt_oss_mxfp4", "gemma4_text", "qwen3_5_moe_wrapped")
# Bytes of a header become others of their class, so that most of it stays what it is: names and
# sizes of JSON; and in GGUF also bytes at the edges.
CLASSES = (b"0123456789", b"abcdefghijklmnopqrstuvwxyzFBIU_.", b'"{}[],: ')
EDGES = bytes((0, 1, 2, 10, 0x7F, 0xFF))


def latent_folder(folder):
    config = tiny_family_config("glm4_moe_lite")
    write_folder(folder, config, random_tensors(config, seed=0))
    values = small_config("glm4_moe_lite")[1] | {"model_type": "glm4_moe_lite"}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


class Changed:
    """A file of which few bytes change at a time."""

    def __init__(self, path, header):
        self.path, self.header = path, header

    def change(self, rng, choices_of):
        """Other bytes, of choices_of(byte), in 1 to 3 places of the header."""
        self.places = [rng.randrange(*self.header) for _ in range(rng.randrange(1, 4))]
        with open(self.path, "r+b") as file:
            self.whole = file.read(self.header[1])
            for at in self.places:
                file.seek(at)
                file.write(bytes([rng.choice(choices_of(self.whole[at]))]))

    def mend(self):
        with open(self.path, "r+b") as file:
            for at in self.places:
                file.seek(at)
                file.write(self.whole[at : at + 1])


def of_class(byte):
    return next((known for known in CLASSES if byte in known), CLASSES[0])


def is_planned(plan):
    """Whether a model is planned; one that is refused is in one sentence."""
    try:
        plan()
    except ModelFileError as error:
        assert_one_sentence(error)
        return False
    return True


@pytest.mark.parametrize("name", [*FOLDERS, LATENT])
def test_a_changed_folder_is_planned_or_refused_in_one_sentence(name, tmp_path):
    folder = tmp_path / "model"
    if name == LATENT:
        latent_folder(folder)
    else:
        shutil.copytree(DATA / FOLDERS[name], folder)
    plan_folder(str(folder))
    weights = folder / "model.safetensors"
    with open(weights, "rb") as file:
        header = Changed(weights, (8, 8 + int.from_bytes(file.read(8), "little")))
    settings = json.loads((folder / "config.json").read_text())
    rng, planned = random.Random(name), 0
    for index in range(NUM_CASES):
        changed = copy.deepcopy(settings)
        if index % 3:
            change_json(changed, rng)
        (folder / "config.json").write_text(json.dumps(changed))
        if index % 3 != 1:
            header.change(rng, of_class)
        planned += is_planned(lambda: plan_folder(str(folder)))
        if index % 3 != 1:
            header.mend()
    assert planned < NUM_CASES / 2  # few changes are harmless
    (folder / "config.json").write_text(json.dumps(settings))
    plan_folder(str(folder))


@pytest.fixture(scope="module")
def gguf_in_parts(tmp_path_factory):
    """Paths of a model in two files."""
    folder = tmp_path_factory.mktemp("gguf")
    model = build("llama", **SIZES, tie_word_embeddings=True)
    kinds = {".q_proj.": "NVFP4", ".k_proj.": "TQ2_0", ".v_proj.": "TQ1_0", ".o_proj.": "MXFP4"}

    def kind_of(name):
        return next((kind for part, kind in kinds.items() if part in name), "Q8_0")

    factors = {"blk.0.attn_q": 0.5}
    write_gguf(folder / "m.gguf", model, kind_of, factors=factors, split_max_tensors=12)
    return sorted(folder.glob("m-*.gguf"))


def judge_gguf(paths, name):
    """Plan a model in these files, which are changed and mended, as often as it is said."""
    files = []
    tensors = read_gguf(paths[0]).tensors.values()
    for path in paths:
        start = min(info.offset for info in tensors if info.path == str(path))
        files.append(Changed(path, (4, start)))
    rng, planned = random.Random(name), 0
    for _ in range(NUM_CASES):
        file = rng.choice(files)
        file.change(rng, lambda byte: EDGES + bytes([byte ^ 1, rng.randrange(256)]))
        planned += is_planned(lambda: plan_gguf(read_gguf(paths[0])))
        file.mend()
    assert planned < NUM_CASES
    plan_gguf(read_gguf(paths[0]))


def test_changed_parts_of_a_gguf_model_are_planned_or_refused_in_one_sentence(gguf_in_parts):
    judge_gguf(gguf_in_parts, "parts")


@pytest.mark.parametrize("name", FILES)
def test_a_changed_gguf_file_is_planned_or_refused_in_one_sentence(name, tmp_path):
    path = tmp_path / "m.gguf"
    shutil.copyfile(DATA / "families" / f"{name}.gguf", path)
    judge_gguf([path], name)
