"""Run as a program: `serve`, with one process or several, that does what a prompt names in
attempts.py. Arguments are serve's."""

import logging
import os
import sys

from attempts import ATTEMPTS, NATIVE, WRITES
from fakes import ByteTokenizer, FakeEngine

from marlin import config
from marlin.commands.parser import Parser
from marlin.engine.served_model import ServedModel
from marlin.server.process import worker
from marlin.server.process.serve import serve
from marlin.server.process.supervisor import supervise

_ACTS = {**{name: act for name, (_, act) in ATTEMPTS.items()}, **NATIVE, **WRITES}


class Tokenizer(ByteTokenizer):
    def encode(self, text, **options):
        if text in _ACTS:
            _ACTS[text]()
        return super().encode(text, **options)


def _load(settings, _share=None):
    return ServedModel(settings.model_path, FakeEngine(), Tokenizer())


def _set_up_logging(settings):
    logging.basicConfig(level=settings.log_level, stream=sys.stderr)


def worker_main():
    return worker.main(_load, _set_up_logging)


def main():
    # The workers import worker_main by its module's name, which must not be __main__.
    import serve_attempts

    parser = Parser("serve", "answer from a scripted engine")
    config.add_arguments(parser)
    settings = config.serve_config(vars(parser.read(sys.argv[1:])), os.environ)
    _set_up_logging(settings)
    if settings.workers > 1:
        return supervise(settings, serve_attempts.worker_main)
    return serve(settings, _load)


if __name__ == "__main__":
    sys.exit(main())
