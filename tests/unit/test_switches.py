"""The spellings of an option that is on or off, on the command line of serve."""

import pytest

from marlin import config
from marlin.commands.parser import Parser
from marlin.errors import ConfigError


def settled(*words):
    parser = Parser("serve", "serve")
    config.add_arguments(parser)
    return config.serve_config(vars(parser.read(words)), {})


@pytest.mark.parametrize(
    ("words", "on"),
    [
        ([], True),
        (["--enable-metrics"], True),
        (["--enable-metrics=true"], True),
        (["--enable-metrics=false"], False),
        (["--enable-metrics", "false"], False),
        (["--enable-metrics", "true"], True),
        (["--no-enable-metrics"], False),
        (["--enable-metrics", "--no-enable-metrics"], False),
        (["--no-enable-metrics", "--enable-metrics=true"], True),
    ],
)
def test_metrics_are_on_unless_switched_off_and_the_last_switch_wins(words, on):
    assert settled(*words).enable_metrics is on


@pytest.mark.parametrize(
    ("words", "on"),
    [
        ([], False),
        (["--enable-batching"], True),
        (["--enable-batching=true"], True),
        (["--enable-batching=false"], False),
        (["--enable-batching", "true"], True),
        (["--enable-batching", "false", "models/tiny"], False),
        (["--no-enable-batching"], False),
    ],
)
def test_batching_is_off_unless_switched_on(words, on):
    assert settled(*words).enable_batching is on


@pytest.mark.parametrize("flag", ["--enable-metrics", "--enable-batching", "--no-enable-metrics"])
def test_a_bare_switch_does_not_take_the_model_path_for_its_value(flag):
    assert settled(flag, "models/tiny").model_path == "models/tiny"
    assert settled("models/tiny", flag).model_path == "models/tiny"
    assert settled(flag, "--", "true").model_path == "true"


@pytest.mark.parametrize(
    "word", ["--enable-metrics=maybe", "--enable-metrics=", "--enable-batching=1"]
)
def test_another_value_is_a_mistake_that_names_the_switch(word):
    flag, _, value = word.partition("=")
    with pytest.raises(ConfigError, match=f"^{flag} must be true or false, got '{value}'$"):
        settled(word)


def test_a_value_given_otherwise_must_be_true_or_false():
    with pytest.raises(ConfigError, match="--enable-metrics must be true or false, got 'yes'"):
        config.serve_config({"enable_metrics": "yes"}, {})


def test_the_log_format_is_text_or_json():
    assert settled().log_format == "text"
    assert settled("--log-format", "json").log_format == "json"
    with pytest.raises(ConfigError, match="--log-format must be text or json, got 'xml'"):
        settled("--log-format", "xml")
