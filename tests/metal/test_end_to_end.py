"""The demo model from Python to the shaders: ctypes, metal.m, the simulated Metal, the unmodified
kernels. Greedy tokens are the CPU device's."""

import pytest

from marlin.device.device import Device
from marlin.engine.engine import Engine
from marlin.engine.kv_cache import Paging
from marlin.engine.request import FinishEvent
from marlin.engine.runner import Runner
from marlin.engine.sampling import SamplingParams
from marlin.models.checkpoint import open_checkpoint
from marlin.models.model import Model

# Far longer than a token takes here; only a broken engine waits this long.
WAIT_S = 120
BLOCK_SIZE, NUM_BLOCKS = 16, 32
STEP_TOKENS = 64
MAX_SEQUENCES = 3
# Prompt to tokens wanted. The best logit leads the next by more than 1 at each of them: the CPU
# quantizes its activations and a GPU does not, which moves a logit by some tenths.
PROMPTS = {"1, 2, 3, 4, 5, 6,": 4, "a b c d e f g": 4, "The capital of France is": 3}


class Generator:
    """The demo model on one device, several requests at a time."""

    def __init__(self, device, path):
        self.device = device
        checkpoint = open_checkpoint(path, device)
        self.tokenizer = checkpoint.load_tokenizer()
        paging = Paging(NUM_BLOCKS, BLOCK_SIZE, NUM_BLOCKS)
        self.runner = Runner(device, Model(checkpoint), paging, STEP_TOKENS, MAX_SEQUENCES)
        self.engine = Engine(self.runner, eos_token_ids=())

    def generate(self, *prompts):
        """Greedy token ids of prompts that run together."""
        requests = [
            self.engine.submit(
                self.tokenizer.encode(prompt),
                SamplingParams(temperature=0.0, max_tokens=PROMPTS[prompt]),
                prompt,
            )
            for prompt in prompts
        ]
        return [tokens_of(request) for request in requests]

    def close(self):
        self.engine.close()
        self.runner.close()


def tokens_of(request):
    token_ids = []
    while not isinstance(event := request.events.get(timeout=WAIT_S), FinishEvent):
        token_ids += event.token_ids
    assert event.reason == "length", event
    return token_ids


@pytest.fixture(scope="module")
def expected(demo_model_path):
    """Prompt to the CPU device's tokens, each prompt alone."""
    device = Device(kind="cpu")
    generator = Generator(device, demo_model_path)
    tokens = {prompt: generator.generate(prompt)[0] for prompt in PROMPTS}
    generator.close()
    device.close()
    return tokens


@pytest.fixture(scope="module")
def on_metal(demo_model_path, simulated_metal):
    device = simulated_metal.open()
    generator = Generator(device, demo_model_path)
    yield generator
    generator.close()
    device.close()


# One of the prompts always: the batch below has all of them, and each takes eight seconds alone.
@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param(prompt, marks=[pytest.mark.long] if at else [])
        for at, prompt in enumerate(PROMPTS)
    ],
)
def test_a_prompt_alone_gives_the_cpu_devices_tokens(on_metal, expected, prompt):
    assert on_metal.generate(prompt) == [expected[prompt]]


def test_prompts_in_a_batch_give_the_tokens_of_each_alone(on_metal, expected):
    assert on_metal.generate(*PROMPTS) == list(expected.values())
