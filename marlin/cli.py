"""The command line: what can be typed, and which part of the project runs it.

Imports the part that a command needs inside that command, so that --help and mistakes answer at
once.
"""

import argparse
import os
import sys

from marlin import __version__, config
from marlin.errors import ConfigError, MarlinError

_COMMANDS = {
    "serve": "answer the OpenAI API over HTTP",
    "generate": "write a model's answer to standard output",
    "quantize": "make a packed model folder from safetensors or GGUF",
    "bench": "measure prefill and decode speed",
    "info": "show versions, devices and their kernels",
    "selftest": "run every kernel on stored vectors",
}


def main(argv=None, environ=None):
    """Run one command.

    Args:
        argv: arguments without the program's name; None takes the process's own.
        environ: environment mapping; None takes the process's own.

    Returns:
        Exit code: 0, 1 for a failure, 2 for a mistake in the arguments.
    """
    argv = sys.argv[1:] if argv is None else argv
    environ = os.environ if environ is None else environ
    chosen = next((word for word in argv if not word.startswith("-")), None)
    parser = _build_parser(chosen)
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 2
    try:
        return _run(arguments, environ)
    except ConfigError as error:
        print(f"metal-marlin: {error.message}", file=sys.stderr)
        return 2
    except MarlinError as error:
        print(f"metal-marlin: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output left; a second flush at exit must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _build_parser(chosen):
    parser = argparse.ArgumentParser(
        prog="metal-marlin",
        description="OpenAI-compatible server for quantized language models.",
    )
    parser.add_argument("--version", action="version", version=f"metal-marlin {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, summary in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=_sentence(summary))
        if name == chosen:
            _ADD_ARGUMENTS[name](command)
    return parser


def _sentence(summary):
    return summary[0].upper() + summary[1:] + "."


def _add_quantize_arguments(parser):
    from marlin.commands import quantize

    quantize.add_arguments(parser)


def _add_bench_arguments(parser):
    from marlin.commands import bench

    bench.add_arguments(parser)


def _add_info_arguments(parser):
    from marlin.commands import info

    info.add_arguments(parser)


def _add_selftest_arguments(parser):
    from marlin.commands import selftest

    selftest.add_arguments(parser)


def _count(low, high=None):
    """config.whole_number() as an argparse type; argparse shows what an ArgumentTypeError says."""
    parse = config.whole_number(low, high)

    def typed(text):
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{error}, got {text!r}") from None

    return typed


def _add_generate_arguments(parser):
    parser.add_argument("model_path", metavar="MODEL", help="model folder or GGUF file")
    parser.add_argument(
        "--prompt", default="-", help="the prompt; - (the default) reads standard input"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--chat",
        action="store_true",
        default=None,
        help="put the prompt through the model's chat template (default if it has one)",
    )
    mode.add_argument(
        "--raw", action="store_false", dest="chat", help="continue the prompt as it is"
    )
    parser.add_argument("--system", metavar="TEXT", help="system message, with --chat")
    _add_sampling_options(parser)
    parser.add_argument("--stop", action="append", metavar="TEXT", help="may be repeated")
    parser.add_argument("--device", choices=config.DEVICE_KINDS, help=config.DEVICE_HELP)
    parser.add_argument(
        "--threads", type=_count(1, config.MAX_THREADS), metavar="N", help="of the CPU device"
    )
    parser.add_argument("--max-context", type=_count(1), metavar="TOKENS")
    parser.add_argument(
        "--speculative", choices=config.SPECULATIVE_METHODS, help=config.SPECULATIVE_HELP
    )
    parser.add_argument(
        "--allow-unknown-pretokenizer", action="store_true", help=config.PRETOKENIZER_HELP
    )


def _add_sampling_options(parser):
    from marlin.engine.sampling import PARAMETERS

    for row in PARAMETERS:
        flag = "--" + row.name.replace("_", "-")
        if row.kind is bool:
            parser.add_argument(flag, action="store_true", help=row.help)
            continue
        default = "" if row.default is None else f" (default {row.default:g})"
        parser.add_argument(
            flag,
            type=float if row.kind is float else _count(max(row.low, 0)),
            metavar="X" if row.kind is float else "N",
            help=row.help + default,
        )


_ADD_ARGUMENTS = {
    "serve": config.add_arguments,
    "generate": _add_generate_arguments,
    "quantize": _add_quantize_arguments,
    "bench": _add_bench_arguments,
    "info": _add_info_arguments,
    "selftest": _add_selftest_arguments,
}


def _run(arguments, environ):
    if arguments.command == "serve":
        return _serve(arguments, environ)
    if arguments.command == "generate":
        from marlin.commands import generate
        from marlin.engine.load import load_model

        return generate.run(arguments, load_model)
    if arguments.command == "quantize":
        from marlin.commands import quantize

        return quantize.run(arguments)
    if arguments.command == "info":
        from marlin.commands import info

        return info.run(arguments)
    if arguments.command == "selftest":
        from marlin.commands import selftest

        return selftest.run(arguments)
    from marlin.commands import bench

    return bench.run(arguments)


def _serve(arguments, environ):
    settings = config.serve_config(vars(arguments), environ)
    _set_up_logging(settings)
    _warn_of_unused_options(arguments, settings)
    if settings.workers > 1:
        from marlin.server.process.supervisor import supervise

        return supervise(settings, run_worker)
    from marlin.server.process.serve import serve

    return serve(settings, _load_model)


def _warn_of_unused_options(arguments, settings):
    if unused := config.unused_options(vars(arguments), settings):
        import logging

        logging.getLogger(__name__).warning(
            "no effect without --enable-batching: %s", ", ".join(unused)
        )


def run_worker():
    """The main function of a worker process (server/process/supervisor.py); its exit code."""
    from marlin.server.process import worker

    return worker.main(_load_model, _set_up_logging)


def _set_up_logging(settings):
    from marlin.server.observe import logs

    logs.configure(settings.log_level, settings.log_format, sys.stderr)


def _load_model(settings, share=None):
    if settings.mock_model:
        from marlin.engine.mock import load_mock

        return load_mock(settings.model_path, settings.max_context_tokens)
    from marlin.engine.load import Batching, load_model

    batching = None
    if settings.enable_batching:
        batching = Batching(
            settings.num_kv_blocks, settings.block_size, settings.max_concurrent_requests
        )
    return load_model(
        settings.model_path,
        device_kind=settings.device,
        num_threads=settings.num_threads,
        max_context_tokens=settings.max_context_tokens,
        batching=batching,
        share=share,
        speculative=settings.speculative,
        allow_unknown_pretokenizer=settings.allow_unknown_pretokenizer,
    )
