"""The bounds of a server: those that docs/serving.md promises, and what must hold between them."""

import pytest

from marlin.server.http.limits import Limits

LIMITS = Limits()
KIB, MIB = 1024, 1024 * 1024


@pytest.fixture(scope="module")
def promised(checkout):
    """Whether docs/serving.md says so, wherever its lines break."""
    text = " ".join((checkout / "docs" / "serving.md").read_text().split())
    return lambda words: words in text


@pytest.mark.parametrize(
    "words",
    [
        f"a head of {LIMITS.head_bytes // KIB} KiB and {LIMITS.num_header_fields} fields",
        f"{LIMITS.head_s:g} s for a head, {LIMITS.body_s:g} s for a body",
        f"{LIMITS.write_s:g} s for one write",
        f"{LIMITS.idle_s:g} s between two requests of a connection",
        f"{LIMITS.num_connections:,} connections",
        f"keeps {LIMITS.num_own_descriptors + LIMITS.num_extra_connections} descriptors",
        f"{LIMITS.num_extra_connections} more may ask for `/health`",
        f"| objects and arrays in one | {LIMITS.num_values:,} |",
        f"all bodies above {LIMITS.small_body_bytes // KIB} KiB together, in each process | "
        f"{LIMITS.bodies_bytes // MIB} MiB",
        f"503 with `Retry-After`, after {LIMITS.bodies_wait_s:g} s |",
        f"A body that has been on its way for {LIMITS.body_grace_s:g} s gives its room",
        f"(`: waiting`, which readers of the format skip) every {LIMITS.keep_alive_s:g} seconds",
        f"is replaced after {LIMITS.restart_s:g} s, and after twice as long each time, up to "
        f"{LIMITS.restart_max_s:g} s",
        f"up to {LIMITS.restart_max_s:g} s, until one has lived for {LIMITS.restart_reset_s:g} s",
        f"has completed no step for {LIMITS.stuck_s:g} s",
        f"answers over {LIMITS.failing_s:g} s were internal errors (500)",
        f"no step completed, for {LIMITS.hung_s:g} s",
        f"killed {LIMITS.abort_s:g} s later",
        f"leaves new connections to others once a step takes {LIMITS.slow_s:g} s",
        f"`n` | 1 to {LIMITS.num_choices} choices for each prompt",
        f"or up to {LIMITS.num_stop_strings} of them; each up to {LIMITS.stop_characters:,} char",
        f"gives the requests in flight up to {LIMITS.drain_s:g} s",
    ],
)
def test_a_limit_is_what_the_documentation_says(promised, words):
    assert promised(words)


@pytest.mark.parametrize(
    ("tokens", "body_bytes"),
    [(0, 64 * KIB), (128 * 1024, 4 * MIB + 64 * KIB), (1024 * 1024, 16 * MIB)],
)
def test_a_body_may_be_what_the_documentation_says_of_a_context(promised, tokens, body_bytes):
    assert LIMITS.for_context(tokens).body_bytes == body_bytes
    assert promised("64 KiB and 32 bytes for each token of the context (4 MiB and 64 KiB at 128k)")


def test_a_limit_leaves_room_for_what_it_is_longer_than():
    assert LIMITS.idle_s > 60  # what proxies keep a connection for
    assert LIMITS.keep_alive_s < 15  # what the least patient wait for news
    assert 4 * LIMITS.heartbeat_s < LIMITS.slow_s < LIMITS.stuck_s < LIMITS.hung_s
    assert LIMITS.restart_s < LIMITS.restart_max_s < LIMITS.restart_reset_s + 1
    assert LIMITS.abort_s < LIMITS.stop_s < LIMITS.drain_s
    assert LIMITS.poll_s <= 0.1  # an engine is left within it
    assert LIMITS.linger_s <= 2  # a place is held meanwhile
    assert LIMITS.request_line_bytes >= 8000  # RFC 9112 section 3
    assert LIMITS.body_bytes <= LIMITS.bodies_bytes
