"""The real engine over a runner that has no model and fails when it is told to, and a tokenizer
that does."""

import time
from types import SimpleNamespace

from fakes import EOS_ID, ByteTokenizer

from marlin.engine.engine import Engine
from marlin.engine.kv_cache import Paging
from marlin.engine.runner import NO_TOKEN
from marlin.errors import DeviceError

# In a prompt: its first step fails; there is a bug in its second, which begins after a pause that
# lets the first token reach its client; its logits are not numbers.
DEVICE_FAILS, ENGINE_BREAKS, NO_NUMBERS = "#device", "#engine", "#numbers"
DEVICE_HANGS = "#hangs"  # for ever
NO_MEMORY = "#memory"
BREAKS = "#breaks"  # the tokenizer, for ever
PAUSE_S = 0.3
REASON = "the device fell over"
ANSWER = "ok"


class FailingRunner:
    """Answers every request with ANSWER, one at a time."""

    paging = Paging.contiguous(1024)
    model = SimpleNamespace(config=SimpleNamespace(vocab_size=ByteTokenizer.vocab_size))
    device = SimpleNamespace(close=lambda: None, keep_resident=lambda: None)
    max_sequences, max_step_tokens, max_draft_tokens = 1, 1024, 0
    kv_bytes = gpu_memory_bytes = 0
    generates = True
    logprobs = ((),)
    num_beyond = (0,)

    def step(self, chunks):
        request = chunks[0].request
        prompt, num_out = bytes(request.prompt_token_ids), len(request.output_token_ids)
        if DEVICE_FAILS.encode() in prompt:
            raise DeviceError(REASON)
        if NO_MEMORY.encode() in prompt:
            raise MemoryError
        if DEVICE_HANGS.encode() in prompt:
            time.sleep(1000)
        if ENGINE_BREAKS.encode() in prompt and num_out:
            time.sleep(PAUSE_S)
            raise RuntimeError("a bug in the engine")
        if NO_NUMBERS.encode() in prompt:
            return [[NO_TOKEN]]
        return [[*ANSWER.encode(), EOS_ID][num_out : num_out + 1]]

    def close(self):
        pass


def failing_engine():
    return Engine(FailingRunner(), ByteTokenizer.eos_token_ids)


class BrokenTokenizer(ByteTokenizer):
    """Encodes nothing any more once a text had BREAKS in it."""

    is_broken = False

    def encode(self, text, *, add_special_tokens=True):
        self.is_broken |= BREAKS in text
        if self.is_broken:
            raise Panic("no threads to run on")
        return super().encode(text, add_special_tokens=add_special_tokens)


class Panic(BaseException):
    """As PyO3's."""
