"""Every bound the server puts on a client, each with its reason.

Values only: nothing here reads a socket or a clock. Tests pass smaller ones in.
"""

from dataclasses import dataclass, replace

# Of a request body for each token of the context: five characters, each as \\uXXXX. Then what does
# not grow with the text: parameters, schemas, a few short fields of many short messages.
_BODY_BYTES_PER_TOKEN, _BODY_BYTES = 32, 64 * 1024
# However large the context is.
_MAX_BODY_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one server. Sizes in bytes, times in seconds.

    Attributes:
        request_line_bytes: method, target and version. RFC 9112 section 3 asks for at least 8,000.
        head_bytes: request line and all fields together; proxies add a few KB of their own at most.
        num_header_fields: enough for any proxy chain; a flood of tiny fields stops here.
        body_bytes: of one request; serve sets it by for_context(), this is a context of 128k.
        small_body_bytes: a body up to this size is read at once: of 2,048 connections such bodies
            take 32 MiB, and most requests are smaller.
        bodies_bytes: all larger bodies together, while they are read and until what they ask for is
            answered; never less than body_bytes.
        body_grace_s: after so long a larger body that is still on its way gives its room to one
            that waits for some, if its client holds more: 1.4 MB/s for one of 4 MiB.
        bodies_wait_s: how long a larger body waits for room among the others before it is refused.
        num_values: objects and arrays of one body: each takes up to 300 bytes of memory, so at most
            40 MiB, and no conversation has as many.
        chunk_line_bytes: a chunk-size line, or a trailer field; we use neither extensions nor
            trailers.
        num_trailer_fields: trailers are read and dropped, so a handful is already generous.
        chunk_overhead: bytes of chunk framing allowed for each body byte, plus 64 KiB; one-byte
            chunks with a plain size line cost 5, so honest clients never meet it.
        unread_body_bytes: when an error is answered before the body was read, a body up to this
            size is read and dropped to keep the connection; a larger one costs the client its
            connection.
        head_s: from connecting to the first byte, and from the first byte of a request to the end
            of its head.
        idle_s: between two requests of a connection; longer than the 60 s that proxies commonly
            keep.
        body_s: for the whole body: body_bytes in 60 s is 70 KB/s.
        write_s: for one write. A reader that stalls longer than this has stopped reading.
        linger_s: how long a connection that ends early is read, so that the answer is not lost to a
            reset.
        drain_s: what requests in flight get when the server is told to stop; service managers wait
            longer.
        poll_s: how often a wait for the engine looks whether the client is still there.
        keep_alive_s: a stream without news gets a comment; the shortest patience of proxies and
            clients that people meet is 15 to 30 s.
        pipelined_bytes: requests sent ahead that are held while one is answered.
        num_connections: one thread each; 1,000 idle clients must leave room for the busy ones. A
            server lowers it to what file descriptors allow.
        num_extra_connections: while all of those are being answered, so many more may ask for
            /health; whatever else they ask for is a 503.
        arrival_s: for so long after connecting, and after its first byte, a request is expected,
            and its connection does not go for another of the same peer, which is refused instead.
        wrong_key_s: before a wrong API key is answered: a guess a second on a connection.
        num_wrong_keys: of those that wait at once: few of the threads and places there are.
        num_own_descriptors: for what is no connection: the model's files, pipes, logs, and
            connections that end while new ones come.
        log_pause_s: between two log lines about connections that were refused.
        backlog: connections the kernel holds while the model loads or the accept loop is behind.
        num_stop_strings, stop_characters: each is searched for in every token's text.
        num_choices: `n` of a call; each is a request to the engine, all from one slot.
        num_call_choices: `n` times the prompts of a call; --max-choices sets it.
        num_inputs: texts of a call for embeddings, or documents to rank; the bound of OpenAI's API.
        num_output_tokens: that a call may ask for a choice; None is what the context holds.
        queue_factor: requests that may wait for a slot, for each slot: a queued request then waits
            about as long as a running one runs.
        stuck_s: an engine that has work and completes no step for so long is taken for stuck: a
            full prefill step of an 8B model takes two slow cores about 20 s. So is a worker
            process that gave no sign of life meanwhile.
        proof_s, proof_pause_s: /health?deep=1 takes an engine for stuck after the first, since who
            asks waits, and begins no other proof before the second, which each worker counts.
        hung_s: a process whose engine, or a worker of which nothing, has been heard for so long is
            ended: later than /health says so, for whoever looks after it to look elsewhere.
        abort_s: what such a worker gets to say where it hangs.
        num_failures, failing_s: after so many internal errors in a row, over so long, a process
            counts as one that answers nothing else. After failing_s more in that state, or in one
            in which it cannot tokenize, it ends, so that another takes its place.
        scarce_s: for so long after a request got no memory /health says so; most ask more often.
        slow_s: while its engine takes longer for a step, a worker leaves new connections to others.
        heartbeat_s: how often a worker process gives its signs of life.
        restart_s, restart_max_s: the pause before a worker that ended is replaced, doubled each
            time: the first crash costs hardly anything, and a crash loop no processor time.
        restart_reset_s: a worker that lived for so long had a fresh crash; pauses start anew.
        stop_s: what a worker gets beyond drain_s to end by itself.
    """

    request_line_bytes: int = 8 * 1024
    head_bytes: int = 32 * 1024
    num_header_fields: int = 100
    body_bytes: int = 4 * 1024 * 1024
    small_body_bytes: int = 16 * 1024
    bodies_bytes: int = 32 * 1024 * 1024
    body_grace_s: float = 3.0
    bodies_wait_s: float = 5.0
    num_values: int = 128 * 1024
    chunk_line_bytes: int = 1024
    num_trailer_fields: int = 16
    chunk_overhead: int = 8
    unread_body_bytes: int = 16 * 1024
    head_s: float = 10.0
    idle_s: float = 75.0
    body_s: float = 60.0
    write_s: float = 30.0
    linger_s: float = 1.0
    drain_s: float = 30.0
    poll_s: float = 0.1
    keep_alive_s: float = 10.0
    pipelined_bytes: int = 64 * 1024
    num_connections: int = 2048
    num_extra_connections: int = 16
    arrival_s: float = 1.0
    wrong_key_s: float = 1.0
    num_wrong_keys: int = 32
    num_own_descriptors: int = 128
    log_pause_s: float = 10.0
    backlog: int = 1024
    num_stop_strings: int = 16
    stop_characters: int = 1024
    num_choices: int = 16
    num_call_choices: int = 64
    num_inputs: int = 2048
    num_output_tokens: int | None = None
    queue_factor: int = 1
    stuck_s: float = 60.0
    proof_s: float = 20.0
    proof_pause_s: float = 1.0
    hung_s: float = 90.0
    abort_s: float = 2.0
    num_failures: int = 10
    failing_s: float = 10.0
    scarce_s: float = 15.0
    slow_s: float = 5.0
    heartbeat_s: float = 0.25
    restart_s: float = 0.25
    restart_max_s: float = 30.0
    restart_reset_s: float = 60.0
    stop_s: float = 5.0

    def for_context(self, max_context_tokens: int, takes_many: bool = False) -> "Limits":
        """These, with the largest body that a model of this context can use.

        Args:
            takes_many: it does more than generate, so that num_inputs texts may come at once.
        """
        num_tokens = max_context_tokens * (self.num_inputs if takes_many else 1)
        wanted = _BODY_BYTES_PER_TOKEN * num_tokens + _BODY_BYTES
        return replace(self, body_bytes=min(wanted, _MAX_BODY_BYTES))
