"""`metal-marlin serve`: from settings to a server of one process or several.

Imports the server only once the settings are known to be sound.
"""

import gc
import logging
import sys

from marlin import config
from marlin.commands.progress import waiting
from marlin.errors import ConfigError, ModelFileError
from marlin.models.place import is_folder


def add_arguments(parser):
    """Declare the command's arguments on a Parser."""
    config.add_arguments(parser)
    parser.add_argument(
        "--check", action="store_true", help="check options and variables, serve nothing"
    )


def run(arguments):
    """Serve until told to stop. Returns the exit code."""
    given = vars(arguments)
    settings = config.serve_config(given, arguments.environ)
    config.check_speculation(settings.speculative, settings.draft_model)
    if settings.manifest and settings.draft_model:
        raise ConfigError("--manifest is of MODEL's files alone: serve without --draft-model")
    set_up_logging(settings)
    if settings.require_key and not settings.has_keys:
        variable = config.API_KEY_VARIABLE
        raise ConfigError(f"--require-key: neither {variable} nor --key-file is there")
    if settings.require_key and settings.has_weak_key:
        raise ConfigError(f"--require-key: {config.WEAK_KEY}")
    _warn(given, settings, arguments.environ)
    if arguments.check:
        return 0
    overridden = config.overridden_model(given, arguments.environ)
    try:
        if settings.model_path and not settings.mock_model:
            is_folder(settings.model_path)  # a mistyped path needs no device and no port
            if settings.draft_model is not None:
                is_folder(settings.draft_model)
        if settings.workers > 1:
            from marlin.server.process.supervisor import supervise

            return supervise(settings, run_worker, model=sealed(settings))
        _stop_collecting()
        from marlin.server.process.serve import serve

        return serve(settings, load)
    except ModelFileError as error:
        if overridden:
            error.message += f" ({overridden})"
        raise
    finally:
        gc.enable()


def run_worker():
    """The main function of a worker process (server/process/supervisor.py); its exit code."""
    _stop_collecting()
    from marlin.server.process import worker

    return worker.main(load, set_up_logging)


def _stop_collecting():
    """Until the model is there (process/serve.py): what is made now stays, and looking for garbage
    among it again and again takes a tenth of the start."""
    gc.disable()


def set_up_logging(settings):
    from marlin.server.observe import logs

    logs.configure(settings.log_level, settings.log_format, sys.stderr)


def sealed(settings):
    """Copies of the model's files that are what its manifest says, a SealedModel; else None."""
    if not settings.manifest:
        if settings.manifest_key:
            raise ConfigError("--manifest-key is of a manifest, and there is none: add --manifest")
        return None
    if settings.mock_model or not settings.model_path:
        raise ConfigError("--manifest is of a model's files, and there are none here")
    from marlin.files.manifest import read_manifest, seal_model

    manifest = read_manifest(settings.manifest, settings.manifest_key)
    with waiting(sys.stderr, f"checking {settings.model_path}"):
        model = seal_model(settings.model_path, manifest)
    log = logging.getLogger(__name__)
    signed = f", signed by {settings.manifest_key}" if settings.manifest_key else ""
    log.info("%d files are those of manifest %s%s", len(model.files), model.digest, signed)
    return model


def load(settings, share=None):
    """The ServedModel that the settings ask for."""
    model = sealed(settings) if share is None else share.model
    if settings.mock_model:
        from marlin.engine.mock import load_mock

        mock = load_mock(settings.model_path, settings.max_context_tokens, settings.pooling)
        mock.trusts_texts = settings.trusts_texts
        return mock
    if model is None:
        return _load(settings, settings.model_path, share)
    with model.path() as path:
        try:
            served = _load(settings, path, share)
        except ModelFileError as error:
            error.message = error.message.replace(path, settings.model_path)
            raise
    if share is None:
        model.close()
    served.manifest_digest = model.digest
    return served


def _load(settings, path, share):
    from marlin.engine.load import Batching, load_model

    batching = None
    if settings.enable_batching:
        batching = Batching(
            settings.num_kv_blocks, settings.block_size, settings.max_concurrent_requests
        )
    with waiting(sys.stderr, f"loading {settings.model_path}"):
        model = load_model(
            path,
            device_kind=settings.device,
            num_threads=settings.num_threads,
            max_context_tokens=settings.max_context_tokens,
            batching=batching,
            share=share,
            speculative=settings.speculative,
            draft_model=settings.draft_model,
            kv_cache_dtype=settings.kv_cache_dtype,
            allow_unknown_pretokenizer=settings.allow_unknown_pretokenizer,
            pooling=settings.pooling,
        )
    model.engine.prefix_cache = settings.prefix_cache
    model.trusts_texts = settings.trusts_texts
    return model


def _warn(given, settings, environ):
    log = logging.getLogger(__name__)
    if unused := config.unused_options(given, settings):
        log.warning("no effect without --enable-batching: %s", ", ".join(unused))
    if unknown := config.unknown_variables(environ):
        log.warning("no such variable, nothing reads it: %s", ", ".join(unknown))
    if settings.has_weak_key:
        log.warning("%s", config.WEAK_KEY)
