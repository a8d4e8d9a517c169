"""The wire: keep-alive, pipelining, and every way a request can lie about where it ends.

Clauses are of RFC 9112 (HTTP/1.1) unless said otherwise.
"""

import json

import pytest
from clients import chat_body, completion_body, request_bytes

GET_HEALTH = request_bytes("GET", "/health")


def refused(server, data, status):
    """Send bytes; the answer must be this status, JSON, and the end of the connection."""
    with server.connect() as client:
        answer = client.send(data).read()
        assert answer.status == status, answer.body
        assert answer.headers["connection"] == "close"
        assert set(answer.error) == {"message", "type", "param", "code"}
        assert client.at_end()
    with server.connect() as client:
        assert client.ask("GET", "/health").status == 200
    return answer


def post(headers, body=b"", path="/v1/completions"):
    kind = "Content-Type: application/json"
    lines = [f"POST {path} HTTP/1.1", "Host: test", kind, *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def test_a_connection_serves_many_requests(server):
    with server.connect() as client:
        for _ in range(20):
            answer = client.ask("GET", "/health")
            assert answer.status == 200 and "connection" not in answer.headers


def test_pipelined_requests_are_answered_in_order(server):
    with server.connect() as client:
        client.send(
            request_bytes("POST", "/v1/completions", completion_body(max_tokens=1))
            + request_bytes("GET", "/v1/models")
            + request_bytes("GET", "/nowhere")
            + GET_HEALTH
        )
        assert client.read().json()["object"] == "text_completion"
        assert client.read().json()["object"] == "list"
        assert client.read().status == 404
        assert client.read().json()["status"] == "ok"


def test_connection_close_is_honoured_and_confirmed(server):
    with server.connect() as client:
        answer = client.ask("GET", "/health", None, ["Connection: Close"])
        assert answer.headers["connection"] == "close"
        assert client.at_end()


def test_an_http_1_0_client_is_closed_unless_it_asks_to_stay(server):
    with server.connect() as client:
        answer = client.send(b"GET /health HTTP/1.0\r\n\r\n").read()
        assert answer.status == 200 and client.at_end()
    with server.connect() as client:
        kept = b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
        assert client.send(kept).read().headers["connection"] == "keep-alive"
        assert client.send(kept).read().status == 200


def test_a_request_may_arrive_byte_by_byte(server):
    with server.connect() as client:
        for byte in request_bytes("POST", "/v1/completions", completion_body()):
            client.send(bytes([byte]))
        assert client.read().status == 200


def test_one_empty_line_before_a_request_is_skipped(server):  # section 2.2
    with server.connect() as client:
        assert client.send(b"\r\n" + GET_HEALTH).read().status == 200


def test_an_absolute_target_is_accepted(server):  # section 3.2.2
    with server.connect() as client:
        client.send(b"GET http://any.example/health?x=1 HTTP/1.1\r\nHost: test\r\n\r\n")
        assert client.read().status == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health",
        b"GET  /health HTTP/1.1",
        b"GET /health HTTP/1.1 ",
        b"GET /hea lth HTTP/1.1",
        b"GET health HTTP/1.1",
        b"GET /health http/1.1",
        b"GET /health HTTP/1.10",
        b"GET /\xc3\xa9 HTTP/1.1",
        b"G\x00T /health HTTP/1.1",
        b"",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_a_malformed_request_line_is_400(server, head):
    refused(server, head + b"\r\nHost: test\r\n\r\n", 400)


def test_another_major_version_is_505(server):
    refused(server, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505)


@pytest.mark.parametrize(
    "field",
    [
        b"No-Colon",
        b"Space : 1",
        b": nameless",
        b" Folded: 1",
        b"Bad\x00Name: 1",
        b"Nul: a\x00b",
        b"Bare-Return: a\rb",
        b"Umlaut-\xfc: 1",
    ],
)
def test_a_malformed_header_field_is_400(server, field):  # section 5
    refused(server, b"GET /health HTTP/1.1\r\nHost: test\r\n" + field + b"\r\n\r\n", 400)


def test_a_folded_header_field_is_400(server):  # section 5.2
    refused(server, b"GET /health HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", 400)


def test_bare_line_feeds_are_400_at_once_and_not_a_hang(server):
    refused(server, b"GET /health HTTP/1.1\nHost: test\n\n", 400)


@pytest.mark.parametrize("hosts", [b"", b"Host: a\r\nHost: a\r\n"])
def test_http_1_1_needs_exactly_one_host(server, hosts):  # section 3.2
    refused(server, b"GET /health HTTP/1.1\r\n" + hosts + b"\r\n", 400)


def test_a_request_line_that_is_too_long_is_414(start_server):
    server = start_server(request_line_bytes=100)
    refused(server, b"GET /" + b"a" * 100 + b" HTTP/1.1\r\nHost: test\r\n\r\n", 414)


def test_a_flood_of_header_fields_is_431(start_server):
    server = start_server(num_header_fields=10)
    refused(server, request_bytes("GET", "/health", None, ["X: 1"] * 10), 431)


def test_a_head_that_never_ends_is_431_once_it_is_too_large(start_server):
    server = start_server(head_bytes=1000)
    refused(server, b"GET /health HTTP/1.1\r\n" + b"X: 1\r\n" * 200, 431)


@pytest.mark.parametrize(
    "length",
    ["+5", "-1", "1_0", "5.0", "0x5", " ", "", "5, 5", "\xb2", "\uff15", "9" * 19, "five"],
)
def test_content_length_is_decimal_digits_and_nothing_else(server, length):
    data = f"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: {length}\r\n\r\nhello"
    refused(server, data.encode("utf-8"), 400)


def test_a_repeated_content_length_is_400_even_when_equal(server):
    refused(server, post(["Content-Length: 2", "Content-Length: 2"], b"{}"), 400)


def test_content_length_with_transfer_encoding_is_400(server):  # section 6.1: smuggling
    chunked = post(["Content-Length: 5", "Transfer-Encoding: chunked"], b"0\r\n\r\n")
    refused(server, chunked, 400)


def test_a_post_that_declares_no_length_is_411(server):
    refused(server, post([]), 411)


@pytest.mark.parametrize("coding", ["gzip", "gzip, chunked", "chunked, chunked", "identity", ""])
def test_a_transfer_coding_other_than_chunked_is_501(server, coding):
    refused(server, post([f"Transfer-Encoding: {coding}"]), 501)


def test_transfer_encoding_in_http_1_0_is_400(server):
    refused(server, b"POST /v1/completions HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400)


def chunked(pieces, last=b"0\r\n\r\n"):
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + last
    return post(["Transfer-Encoding: Chunked"], body)


def test_a_chunked_request_body_is_put_together(server):
    body = json.dumps(completion_body(prompt="abc")).encode()
    with server.connect() as client:
        pieces = [body[:1], body[1:7], body[7:]]
        assert client.send(chunked(pieces)).read().json()["usage"]["prompt_tokens"] == 3
        extension_and_trailer = b"0;x=y\r\nDigest: none\r\nX: 1\r\n\r\n"
        assert client.send(chunked(pieces, extension_and_trailer)).read().status == 200
        assert client.ask("GET", "/health").status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"-1\r\n",
        b"+5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"\r\n",
        b"5\nhello\r\n",
        b"5\r\nhelloo\r\n0\r\n\r\n",
        b"100000000000000000\r\n",
        b"5;" + b"x" * 2000 + b"\r\n",
        b"0\r\nno colon\r\n\r\n",
    ],
)
def test_malformed_chunks_are_400(server, body):
    refused(server, post(["Transfer-Encoding: chunked"], body), 400)


def test_endless_trailers_are_431(server):
    refused(server, post(["Transfer-Encoding: chunked"], b"0\r\n" + b"X: 1\r\n" * 17), 431)


def test_a_body_above_the_limit_is_413_before_it_is_sent(start_server):
    server = start_server(body_bytes=1000)
    refused(server, post(["Content-Length: 1001"]), 413)


def test_a_chunked_body_above_the_limit_is_413(start_server):
    server = start_server(body_bytes=1000)
    refused(server, chunked([b"x" * 600, b"x" * 600]), 413)


def test_a_large_413_body_still_in_flight_does_not_reset_the_answer(start_server):
    server = start_server(body_bytes=1000)
    refused(server, post(["Content-Length: 1000000"], b"x" * 300_000), 413)


def test_one_byte_chunks_with_long_extensions_meet_a_limit(server):
    chunk = b"1;" + b"e" * 1000 + b"\r\nx\r\n"
    refused(server, post(["Transfer-Encoding: chunked"], chunk * 80), 413)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/nowhere", 404), ("POST", "/health", 405), ("GET", "/health", 200)],
)
def test_a_body_that_nobody_reads_never_becomes_the_next_request(server, method, path, status):
    smuggled = request_bytes("GET", "/v1/models")
    with server.connect() as client:
        assert client.ask(method, path, smuggled).status == status
        assert client.ask("GET", "/health").json()["status"] == "ok"


def test_an_unread_body_of_unknown_length_costs_the_connection(server):
    data = chunked([b"hello"]).replace(b"/v1/completions", b"/nowhere")
    refused(server, data, 404)


def test_a_large_unread_body_costs_the_connection(start_server):
    server = start_server(unread_body_bytes=10)
    refused(server, post(["Content-Length: 11"], b"x" * 11, "/nowhere"), 404)


def test_expect_100_continue_is_answered_before_the_body_is_sent(server):
    body = json.dumps(chat_body()).encode()
    with server.connect() as client:
        client.send(
            post(
                [f"Content-Length: {len(body)}", "Expect: 100-continue"],
                path="/v1/chat/completions",
            )
        )
        assert client.read().status == 100
        assert client.send(body).read().status == 200


def test_expect_100_continue_is_answered_by_the_error_when_there_is_one(server):
    data = post(["Content-Length: 5", "Expect: 100-continue"], path="/nowhere")
    refused(server, data, 404)


def test_a_client_that_closes_inside_its_body_is_forgotten(server):
    with server.connect() as client:
        client.send(post(["Content-Length: 50"], b"half"))
    server.wait_until_idle()
    assert server.engine.requests == []


BAD_JSON = [
    b"",
    b"{",
    b"hello",
    b'{"model": "tiny",}',
    b"\xff\xfe",
    b'\xef\xbb\xbf{"model": "tiny"}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"model": "tiny", "model": "tiny"}',
    b'{"temperature": NaN}',
    b'{"temperature": -Infinity}',
    b'{"temperature": 1e999}',
    b'{"seed": ' + b"9" * 5000 + b"}",
    b'{"model": "ti\x00ny"}',
]


@pytest.mark.parametrize("body", BAD_JSON, ids=lambda body: repr(body[:20]))
def test_a_body_that_is_not_json_is_400_and_the_connection_serves_on(server, body):
    with server.connect() as client:
        answer = client.ask("POST", "/v1/chat/completions", body)
        assert (answer.status, answer.error["code"]) == (400, "invalid_json")
        assert len(answer.error["message"]) < 300
        assert client.ask("GET", "/health").status == 200


def test_a_lone_surrogate_is_refused_by_name(server):
    raw = b'{"model":"tiny","messages":[{"role":"user","content":"a\\ud800"}]}'
    with server.connect() as client:
        answer = client.ask("POST", "/v1/chat/completions", raw)
        assert (answer.status, answer.error["param"]) == (422, "messages[0].content")
        answer = client.ask("POST", "/v1/chat/completions", b'{"\\udfff":1,"model":"tiny"}')
        assert answer.status == 422
