"""Where settings come from, which source wins, and how a wrong one is named."""

import pytest

from marlin.config import OPTIONS, serve_config
from marlin.errors import ConfigError


def settled(arguments=None, **environ):
    return serve_config(arguments or {}, environ)


def test_the_defaults_are_those_of_the_documentation():
    config = settled()
    assert (config.host, config.port, config.log_level) == ("0.0.0.0", 8000, "INFO")
    assert (config.max_concurrent_requests, config.max_tokens, config.timeout_s) == (10, 512, 120.0)
    assert (config.model_path, config.num_threads, config.max_context_tokens) == (None, None, None)
    assert config.api_key is None and config.device is None


@pytest.mark.parametrize(
    ("field", "variable", "given", "in_environment", "expected"),
    [
        ("host", "METAL_MARLIN_HOST", "127.0.0.1", "10.0.0.1", ("10.0.0.1", "127.0.0.1")),
        ("port", "METAL_MARLIN_PORT", "1", "2", (2, 1)),
        ("log_level", "METAL_MARLIN_LOG_LEVEL", "debug", "Error", ("ERROR", "DEBUG")),
    ],
)
def test_an_option_overrides_its_variable_which_overrides_the_default(
    field, variable, given, in_environment, expected
):
    environ = {variable: in_environment}
    assert getattr(serve_config({}, environ), field) == expected[0]
    assert getattr(serve_config({field: given}, environ), field) == expected[1]


VALUES = {
    "served_names": ("a,b", "a,b"),
    "host": ("::1", "::1"),
    "port": ("81", 81),
    "uds": ("/run/s", "/run/s"),
    "uds_mode": ("0600", "0600"),
    "uds_owner": ("1:2", (1, 2)),
    "uds_beside_tcp": ("true", True),
    "workers": ("3", 3),
    "max_concurrent_requests": ("4", 4),
    "max_tokens": ("5", 5),
    "max_output_tokens": ("6", 6),
    "max_choices": ("8", 8),
    "unknown_parameters": ("warn", "warn"),
    "timeout_s": ("1.5", 1.5),
    "log_level": ("debug", "DEBUG"),
    "log_format": ("json", "json"),
    "enable_metrics": ("false", False),
    "web_page": ("false", False),
    "device": ("cpu", "cpu"),
    "num_threads": ("6", 6),
    "max_context_tokens": ("7", 7),
    "enable_batching": ("true", True),
    "num_kv_blocks": ("8", 8),
    "block_size": ("32", 32),
    "speculative": ("ngram", "ngram"),
    "draft_model": ("small", "small"),
    "kv_cache_dtype": ("float32", "float32"),
    "pooling": ("mean", "mean"),
    "key_file": ("keys.json", "keys.json"),
    "prefix_cache": ("off", "off"),
    "trusts_texts": ("true", True),
    "require_key": ("true", True),
    "allowed_hosts": ("a.example,b.example", ("a.example", "b.example")),
    "allowed_origins": ("https://a.example,*", ("https://a.example", "*")),
    "allow_unknown_pretokenizer": ("true", True),
    "manifest": ("m.json", "m.json"),
    "manifest_key": ("m.pub", "m.pub"),
    "audit_log": ("a", "a"),
    "audit_key_file": ("k", "k"),
    "audit_content": ("true", True),
    "audit_sync": ("system", "system"),
    "lock_down": ("true", True),
}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.flag)
def test_every_option_has_a_variable_of_its_name(option, checkout):
    text, value = VALUES[option.field]
    assert option.variable == "METAL_MARLIN_" + option.flag[2:].upper().replace("-", "_")
    assert getattr(settled(), option.field) == option.default != value
    assert getattr(settled(**{option.variable: text}), option.field) == value
    documented = (checkout / "docs" / "serving.md").read_text()
    assert f"| `{option.flag}` | `{option.variable}` |" in documented


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "::1", "fe80::1%eth0"])
def test_a_numeric_address_is_taken_as_it_is(host):
    assert serve_config({"host": host}, {}).host == host


def test_localhost_is_127_0_0_1_and_not_looked_up():
    assert serve_config({"host": "localhost"}, {}).host == "127.0.0.1"


def test_the_model_path_variable_overrides_the_argument():
    assert settled({"model_path": "a"}).model_path == "a"
    assert settled({"model_path": "a"}, METAL_MARLIN_MODEL_PATH="b").model_path == "b"


def test_an_empty_variable_counts_as_unset():
    names = ("HOST", "PORT", "LOG_LEVEL", "MODEL_PATH", "API_KEY")
    environ = {f"METAL_MARLIN_{name}": "" for name in names}
    assert serve_config({"model_path": "a"}, environ) == serve_config({"model_path": "a"}, {})


@pytest.mark.parametrize(
    ("field", "flag", "text"),
    [
        ("port", "--port", "65536"),
        ("port", "--port", "-1"),
        ("port", "--port", "8_000"),
        ("port", "--port", "\uff18\uff10"),
        ("port", "--port", ""),
        ("host", "--host", ""),
        ("host", "--host", "example.com"),
        ("host", "--host", "127.1"),
        ("host", "--host", "[::1]"),
        ("served_names", "--served-model-name", ""),
        ("served_names", "--served-model-name", "a,"),
        ("served_names", "--served-model-name", "a, b"),
        ("served_names", "--served-model-name", "a,b,a"),
        ("served_names", "--served-model-name", "a\nb"),
        ("served_names", "--served-model-name", "x" * 257),
        ("served_names", "--served-model-name", ",".join(map(str, range(17)))),
        ("max_concurrent_requests", "--max-concurrent-requests", "0"),
        ("max_tokens", "--max-tokens", "0"),
        ("timeout_s", "--timeout", "0"),
        ("timeout_s", "--timeout", "nan"),
        ("timeout_s", "--timeout", "inf"),
        ("timeout_s", "--timeout", "soon"),
        ("log_level", "--log-level", "LOUD"),
        ("device", "--device", "gpu"),
        ("num_threads", "--threads", "0"),
        ("num_threads", "--threads", "257"),
        ("max_context_tokens", "--max-context", "x"),
        ("speculative", "--speculative", "eagle"),
        ("kv_cache_dtype", "--kv-cache-dtype", "int8"),
        ("pooling", "--pooling", "max"),
    ],
)
def test_a_wrong_option_is_named_with_its_value(field, flag, text):
    with pytest.raises(ConfigError) as caught:
        settled({field: text})
    assert caught.value.message.startswith(flag + " must ")
    assert caught.value.message.endswith(f"got {text!r}")


def test_a_wrong_variable_is_named_as_such():
    with pytest.raises(ConfigError, match="METAL_MARLIN_PORT must be a whole number.*'http'"):
        settled(METAL_MARLIN_PORT="http")


def test_the_api_key_is_bytes_and_stays_out_of_logs():
    config = settled(METAL_MARLIN_API_KEY="k\u00fcy")
    assert config.api_key == b"k\xc3\xbcy"
    assert "k\u00fcy" not in repr(config) and "api_key" not in repr(config)


@pytest.mark.parametrize("key", [" key", "key\n", "a\x00b"])
def test_a_key_that_no_client_can_send_is_refused_without_showing_it(key):
    with pytest.raises(ConfigError) as caught:
        settled(METAL_MARLIN_API_KEY=key)
    assert key not in caught.value.message
