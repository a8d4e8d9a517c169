"""Every error the project raises on purpose, and the HTTP answer each one becomes.

This file is a leaf: it imports nothing of the project. A client's mistake is a RequestError and
names the field, the value and the limit; a bad file is a ModelFileError and names file, tensor and
expectation; native code that refuses or fails is a DeviceError. Broken invariants are `assert`,
not classes here.
"""

import os


class MarlinError(Exception):
    """Base of the tree.

    Attributes:
        message: one sentence that a user can act on.
        status: HTTP status of the answer when this error ends a request.
        type: `error.type` of the OpenAI error body.
        code: `error.code` of that body, or None.
        param: the request field at fault (`messages[2].content`), or None.
        headers: further (name, value) pairs of that answer.
        close: whether the answer ends its connection.
    """

    status: int = 500
    type: str = "server_error"
    code: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    close: bool = False

    def __init__(self, message: str, *, param: str | None = None):
        super().__init__(message)
        self.message = message
        self.param = param


class InternalError(MarlinError):
    """What a client learns of a bug; the log has the rest."""

    code = "internal_error"

    def __init__(self) -> None:
        super().__init__("internal error")


class ConfigError(MarlinError):
    """A command-line option or environment variable that cannot be used."""


class TokenizerPoolError(MarlinError):
    """The tokenizing library has no threads to run on; a new process may get them."""


class DeviceError(MarlinError):
    """Native code refused a call or a replay failed; the text is the library's own."""


class NoMemoryError(DeviceError):
    """The system has no memory for it now."""


class KvRangeError(MarlinError):
    """A key or value that the KV cache cannot hold: what would follow would be wrong."""

    code = "kv_cache_range"

    def __init__(self) -> None:
        super().__init__(
            "a key or value of this text is larger than the KV cache can hold (65504 in float16); "
            "--kv-cache-dtype float32 holds up to 3.4e38"
        )


class NoDeviceError(DeviceError):
    """This machine or installation has no device of the kind asked for; the text says why."""


class SharedWeightsError(MarlinError):
    """The memory in which workers share weights does not hold what was put there."""


def _shortened(text, most):
    """Both ends of a text: names within a file may have tens of thousands of characters."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


class ModelFileError(MarlinError):
    """A model file or folder that cannot be read.

    Args:
        path: the file.
        message: what was found and what was expected.
        tensor: the tensor at fault, or None when it is the file itself.
    """

    def __init__(self, path, message, *, tensor=None):
        where = f"{path}: tensor {_shortened(repr(tensor), 200)}" if tensor else f"{path}"
        super().__init__(f"{where}: {_shortened(message, 700)}")
        self.path = path
        self.tensor = tensor


class ManifestError(MarlinError):
    """A model that is not what its manifest says, or a manifest that says nothing to rely on."""


class AuditFileError(MarlinError):
    """An audit log that cannot be begun or continued."""


class AuditError(MarlinError):
    """A request that cannot be recorded, and so is not worked on."""

    status = 503
    code = "audit_unavailable"
    headers = (("Retry-After", "1"),)

    def __init__(self, problem: str):
        super().__init__(f"nothing is answered that is not recorded: {problem}")


class TemplateError(MarlinError):
    """A chat template that cannot be parsed or rendered, or that exceeded a limit."""

    status = 400
    type = "invalid_request_error"
    code = "template_error"


class NoChatTemplateError(TemplateError):
    """A conversation for a model that has no chat template."""

    code = "no_chat_template"


class RequestError(MarlinError):
    """A client's mistake. Subclasses fix the status; 422 is a field with a wrong value."""

    status = 422
    type = "invalid_request_error"


class NotServedError(RequestError):
    """Something that other models do, and the served one does not."""

    status = 400
    code = "not_supported_by_model"


class MissingFieldError(RequestError):
    """A field that must be there is not."""

    code = "missing_required_parameter"


class MalformedRequestError(RequestError):
    """The body is not JSON."""

    status = 400
    code = "invalid_json"


class FramingError(RequestError):
    """A request that cannot be read as HTTP: nothing behind it on its connection can be trusted.

    Args:
        status: 400, or one that says more, such as 408, 413, 431 or 505.
    """

    close = True

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


class AuthenticationError(RequestError):
    """No API key, or a wrong one."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"
    headers = (("WWW-Authenticate", "Bearer"),)


class ForbiddenError(RequestError):
    """What was asked for is not for this client."""

    status = 403
    type = "permission_error"
    code = "forbidden"


class MediaTypeError(RequestError):
    """A body that is not said to be JSON."""

    status = 415
    code = "unsupported_media_type"


class RateLimitError(RequestError):
    """A key has had what it may have for now.

    Args:
        retry_s: after so many seconds it may have more.
    """

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_s: int):
        super().__init__(f"{message}; try again in {retry_s} s")
        self.headers = (("Retry-After", str(retry_s)),)


class UnknownPathError(RequestError):
    """No endpoint has this path."""

    status = 404
    code = "not_found"


class MethodError(RequestError):
    """The path is one, but not for this method.

    Args:
        allowed: methods that it takes, as the Allow header has them.
    """

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, allowed: str):
        super().__init__(message)
        self.headers = (("Allow", allowed),)


class ContextLengthError(RequestError):
    """Prompt longer than the model's context; the message holds both numbers.

    Args:
        num_tokens, most_tokens: that the prompt has, at least, and that there is room for.
    """

    status = 400
    code = "context_length_exceeded"

    def __init__(self, message: str, num_tokens: int, most_tokens: int):
        super().__init__(message)
        self.num_tokens = num_tokens
        self.most_tokens = most_tokens


class ModelNotFoundError(RequestError):
    """The request names a model that is not the served one."""

    status = 404
    type = "model_not_found"
    code = "model_not_found"


class OverloadedError(MarlinError):
    """The bounded queue is full; the client may retry.

    Args:
        retry_s: after so many seconds; a short completion is over after one.
    """

    status = 503
    type = "server_overloaded"
    code = "server_overloaded"

    def __init__(self, message: str, retry_s: int = 1):
        super().__init__(message)
        self.headers = (("Retry-After", str(retry_s)),)


class NoModelError(MarlinError):
    """The server was started without a model."""

    status = 503
    type = "model_not_loaded"
    code = "model_not_loaded"


class TimedOutError(MarlinError):
    """The answer was not complete in the time that a request has."""

    status = 504
    type = "timeout_error"
    code = "timeout"


class StoppingError(MarlinError):
    """The server ends, or its engine has ended; another server may answer."""

    status = 503
    code = "server_stopping"


class LockdownError(RuntimeError):
    """Something in a serving process tried what no part of it may do (server/process/lockdown.py).

    Not of the tree: it is a bug or an intrusion, which a client learns nothing of, and the log all.
    """


def said_by_system(error: BaseException) -> str | None:
    """What the system refused, as a sentence; None when the error is something else: a bug."""
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    if isinstance(error, ImportError) and "map segment" in str(error):  # of the dynamic linker
        return "there is not enough memory to load a library"
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return "no thread can be started: a limit (ulimit -u, ulimit -v, pids.max) is reached"
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return where + error.strerror
    return None
