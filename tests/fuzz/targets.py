"""What is fuzzed: for each target valid inputs to begin from, and what may come of a changed one.

Clean is what is answered, or refused by an error of the product's own; everything else, an
exception of another kind, a status of 500, a hang, is unclean.
"""

import json
import socket
import threading
from pathlib import Path

import gguf_builder
import mutations
from tiny_models import gguf_names, random_tensors, tiny_config, write_folder
from vocabularies import byte_level_metadata, hugging_face_backend

from marlin.config import serve_config
from marlin.engine.load import load_model
from marlin.engine.request import FinishEvent
from marlin.engine.sampling import SamplingParams
from marlin.engine.served_model import ServedModel
from marlin.errors import MarlinError
from marlin.server.http.limits import Limits
from marlin.server.http.listener import HttpServer, open_listener
from marlin.server.process.serve import build_app
from marlin.text.chat_template import ChatTemplate

DATA = Path(__file__).parents[1] / "data"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
              "use_regex": True}  # fmt: skip
_KINDS = {str: "str", bool: "bool", int: "u32", float: "f32"}


class ModelTarget:
    """A model of which one file is changed; what still loads has to generate."""

    file = ""
    change = staticmethod(mutations.of_json)

    def __init__(self, folder):
        self.folder = folder / "model"
        self.metadata = byte_level_metadata("gpt-2", num_merges=40)
        backend = hugging_face_backend(self.metadata, [BYTE_LEVEL])
        self.config = tiny_config(vocab_size=backend.get_vocab_size())
        self.tensors = random_tensors(self.config, seed=0)
        write_folder(self.folder, self.config, self.tensors)
        backend.save(str(self.folder / "tokenizer.json"))
        written = {"chat_template": "{{ messages[0]['content'] }}", "eos_token": "<|im_end|>"}
        (self.folder / "tokenizer_config.json").write_text(json.dumps(written))
        written = {"eos_token_id": [2], "temperature": 0.5}
        (self.folder / "generation_config.json").write_text(json.dumps(written))
        self.path = self.folder / self.file
        self.valid = self.path.read_bytes()
        assert (said := self.run(self.valid)) == "answered", said

    def case(self, rng):
        return self.change(rng, self.valid)

    def change_again(self, rng, case):
        """One more change to a case; ValueError if it is not what it was any more."""
        return self.change(rng, case)

    def run(self, case):
        self.path.write_bytes(case)
        return generate(self.folder)

    def close(self):
        """Nothing is left."""


def generate(path):
    try:
        model = load_model(path, num_threads=1, device_kind="cpu", max_context_tokens=64)
    except MarlinError as error:
        return f"refused: {error.message}"
    try:
        request = model.engine.submit([1, 2], SamplingParams(max_tokens=2, seed=0), "fuzz")
        while not isinstance(event := request.events.get(timeout=30), FinishEvent):
            pass
        if event.error is not None and not isinstance(event.error, MarlinError):
            raise event.error
        return "answered" if event.error is None else "refused while it answered"
    except MarlinError:
        return "refused while it answered"
    finally:
        model.close()


class Config(ModelTarget):
    file = "config.json"


class TokenizerJson(ModelTarget):
    file = "tokenizer.json"


class TokenizerConfig(ModelTarget):
    file = "tokenizer_config.json"


class GenerationConfig(ModelTarget):
    file = "generation_config.json"


class Safetensors(ModelTarget):
    file = "model.safetensors"

    def change(self, rng, valid):
        """Its header, mostly: 8 bytes of its length, then JSON."""
        size = int.from_bytes(valid[:8], "little")
        if rng.random() < 0.5:
            return mutations.of_bytes(rng, valid[: 8 + size]) + valid[8 + size :]
        header = mutations.of_json(rng, valid[8 : 8 + size])
        return len(header).to_bytes(8, "little") + header + valid[8 + size :]


class Gguf(ModelTarget):
    file = "config.json"  # of the folder that is only a beginning

    def __init__(self, folder):
        super().__init__(folder)
        self.path = folder / "model.gguf"
        self.valid = self._build()
        assert (said := self.run(self.valid)) == "answered", said

    def _build(self):
        config = self.config
        values = {
            "general.architecture": "llama",
            "llama.context_length": 512,
            "llama.embedding_length": config.hidden_dim,
            "llama.block_count": config.num_layers,
            "llama.feed_forward_length": config.intermediate_dim,
            "llama.attention.head_count": config.num_heads,
            "llama.attention.head_count_kv": config.num_kv_heads,
            "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
            **self.metadata,
        }
        names = gguf_names(config)
        tensors = [
            (names[name], "F32", array.shape, gguf_builder.f32(array))
            for name, array in self.tensors.items()
        ]
        self.head_bytes = len(gguf_builder.build([_entry(*i) for i in values.items()], []))
        return gguf_builder.build([_entry(*item) for item in values.items()], tensors)

    def case(self, rng):
        # What lies behind the entries of tensors are weights, any of which are some.
        head = self.head_bytes + 4096
        return mutations.of_bytes(rng, self.valid[:head]) + self.valid[head:]

    def change_again(self, rng, case):
        return mutations.of_bytes(rng, case)

    def run(self, case):
        if self.path.suffix != ".gguf":
            return super().run(case)
        self.path.write_bytes(case)
        return generate(self.path)


def _entry(key, value):
    if isinstance(value, list):
        return key, f"arr:{_KINDS[type(value[0])]}", value
    return key, _KINDS[type(value)], value


class Template:
    """Published templates, and the blocks and expressions of the language, over a conversation."""

    words = ("{{ ", " }}", "{% for x in ", "{% endfor %}", "{% if ", "{% endif %}", "{%- set x = ",
             " | ", "loop.index0", "namespace(a=1)", "messages", "[::-1]", ".items()",
             "range(9**9)", "* 99999", "'a' * 10**9", "{% macro m(a) %}", "{% endmacro %}", "m(m)",
             "tojson", "~", "__class__", ".__init__", "('%s' % x)", "{% raw %}", "is defined", "{#",
             "#}")  # fmt: skip
    variables = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi <|im_end|>"}]},
            {"role": "assistant", "content": "Hello", "tool_calls": []},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "add_generation_prompt": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
    }

    def __init__(self, _folder):
        self.valid = [path.read_text() for path in (DATA / "chat_templates").glob("*.jinja")]
        self.valid += (DATA / "template_blocks.txt").read_text().splitlines()

    def case(self, rng):
        text = mutations.of_text(rng, rng.choice(self.valid), self.words)
        return text.encode("utf-8", "surrogatepass")

    def change_again(self, rng, case):
        text = mutations.of_text(rng, case.decode("utf-8", "replace"), self.words)
        return text.encode("utf-8", "surrogatepass")

    def run(self, case):
        try:
            ChatTemplate(case.decode("utf-8", "replace")).render(self.variables)
        except MarlinError:
            return "refused"
        return "rendered"

    def close(self):
        """Nothing is left."""


class Http:
    """A server on loopback; every answer has to be whole, and none a 500."""

    ends = True  # its client sends no more, and says so
    body = json.dumps({"model": "tiny", "prompt": "Hi", "max_tokens": 2}).encode()

    def __init__(self, _folder):
        from fakes import ByteTokenizer, FakeEngine

        limits = Limits(head_s=0.2, body_s=0.2, idle_s=0.2, linger_s=0.05)
        config = serve_config({"host": "127.0.0.1", "port": "0"}, {})
        self.model = ServedModel("tiny", FakeEngine(), ByteTokenizer(), poll_s=0.01)
        app = build_app(config, self.model, limits)
        self.server = HttpServer(open_listener("127.0.0.1", 0, 64), app, limits)
        self.address = self.server.socket.getsockname()
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.valid = [self._request(b"/v1/completions", self.body)]
        chunks = b"5\r\nhello\r\n0\r\n\r\n"
        head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
        self.valid += [head + b"Content-Type: application/json\r\n\r\n" + chunks]
        self.valid += [b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX-Request-ID: 1\r\n\r\n" * 2]

    @staticmethod
    def _request(path, body):
        head = b"POST " + path + b" HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        head += b"Connection: close\r\n"
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body

    def case(self, rng):
        return mutations.of_bytes(rng, rng.choice(self.valid))

    def change_again(self, rng, case):
        return mutations.of_bytes(rng, case)

    def run(self, case):
        with socket.create_connection(self.address, timeout=30) as client:
            try:
                client.sendall(case)
                if self.ends:
                    client.shutdown(socket.SHUT_WR)
                answer = b"".join(iter(lambda: client.recv(65536), b""))
            except ConnectionError:
                return "closed"
        if answer and not answer.startswith(b"HTTP/1.1 "):
            raise AssertionError(f"no answer of HTTP: {answer[:200]!r}")
        statuses = {part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]}
        if b"500" in statuses:
            raise AssertionError(f"an internal error: {answer[:500]!r}")
        return ",".join(sorted(status.decode("latin-1") for status in statuses)) or "nothing"

    def close(self):
        self.server.drain(5)
        self.model.close()


class Bodies(Http):
    """JSON of every API, over a connection of its own each."""

    ends = False
    CALLS = (
        ("/v1/completions", {"model": "tiny", "prompt": "Hi", "max_tokens": 2, "stop": ["a"],
                             "logprobs": 2, "seed": 1, "n": 1, "stream": False}),
        ("/v1/chat/completions", {"model": "tiny", "max_tokens": 2, "temperature": 0.5,
                                  "messages": [{"role": "user", "content": "Hi"}],
                                  "response_format": {"type": "text"}, "tools": []}),
        ("/v1/messages", {"model": "tiny", "max_tokens": 2, "system": "s",
                          "messages": [{"role": "user", "content": [
                              {"type": "text", "text": "Hi"}]}]}),
        ("/v1/responses", {"model": "tiny", "input": "Hi", "max_output_tokens": 2}),
        ("/tokenize", {"content": "Hi"}),
        ("/detokenize", {"tokens": [72, 105]}),
    )  # fmt: skip

    def case(self, rng):
        path, body = rng.choice(self.CALLS)
        content = mutations.of_json(rng, json.dumps(body).encode())
        return self._request(path.encode(), content)

    def change_again(self, rng, case):
        head, _, body = case.partition(b"\r\n\r\n")
        return self._request(head.split(b" ")[1], mutations.of_json(rng, body))


TARGETS = {
    "gguf": Gguf,
    "safetensors": Safetensors,
    "config.json": Config,
    "tokenizer.json": TokenizerJson,
    "tokenizer_config.json": TokenizerConfig,
    "generation_config.json": GenerationConfig,
    "template": Template,
    "http": Http,
    "bodies": Bodies,
}
