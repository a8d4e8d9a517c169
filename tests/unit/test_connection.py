"""The reading and writing of a socket against its deadline, with a clock of the test's own."""

import math
import socket
from types import SimpleNamespace

import pytest

from marlin.server.http.connection import (
    BareLineFeed,
    Connection,
    LineTooLong,
    PeerGone,
    ReadDeadline,
)
from marlin.server.http.listener import open_listener


class FakeSocket:
    """Gives what is in `coming`, bytes or exceptions; remembers its timeouts and its reads."""

    family = socket.AF_INET

    def __init__(self, *coming):
        self.coming = list(coming)
        self.timeouts, self.sizes, self.sent, self.how = [], [], [], []
        self.most = math.inf

    def setsockopt(self, *_option):
        pass

    def settimeout(self, seconds):
        self.timeouts.append(seconds)

    def gettimeout(self):
        return self.timeouts[-1] if self.timeouts else None

    def recv(self, size):
        self.sizes.append(size)
        data = self.coming.pop(0)
        if isinstance(data, BaseException):
            raise data
        if len(data) > size:
            self.coming.insert(0, data[size:])
        return data[:size]

    def send(self, data):
        taken = bytes(data[: min(len(data), self.most)])
        if not taken:
            raise BlockingIOError
        self.sent.append(taken)
        return len(taken)

    def sendall(self, data):
        self.sent.append(bytes(data))

    def shutdown(self, how):
        self.how.append(how)


def connected(*coming, seconds=5.0, now=0.0):
    clock = SimpleNamespace(now=now)
    sock = FakeSocket(*coming)
    connection = Connection(sock, 30.0, lambda: clock.now)
    connection.set_deadline(seconds)
    return connection, sock, clock


def test_a_head_ends_at_its_empty_line_and_the_rest_stays():
    connection, sock, _ = connected(b"\r\nGET / HTTP/1.1\r\nA: b\r\n\r\nrest")
    assert connection.read_head(100) == b"GET / HTTP/1.1\r\nA: b"
    assert connection.num_buffered == 4
    assert connection.read_exact(4) == b"rest"
    assert sock.sizes == [8192]  # no more than a head needs
    assert sock.timeouts == [5.0]


def test_a_head_may_come_in_any_pieces():
    wire = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
    for size in (1, 2, 3, 5):
        pieces = [wire[at : at + size] for at in range(0, len(wire), size)]
        assert connected(*pieces)[0].read_head(len(wire) - 4) == wire[:-4]


def test_only_one_empty_line_before_a_head_is_skipped():
    assert connected(b"\r\n\r\n\r\nGET")[0].read_head(100) == b""


def test_a_head_has_at_most_its_bytes():
    for size, pieces in ((20, [b"x" * 20 + b"\r\n\r\n"]), (20, [b"x" * 20, b"\r\n\r\n"])):
        assert connected(*pieces)[0].read_head(size) == b"x" * 20
        with pytest.raises(LineTooLong):
            connected(*pieces)[0].read_head(size - 1)
    with pytest.raises(LineTooLong):  # before its end came
        connected(b"x" * 24)[0].read_head(20)


@pytest.mark.parametrize(
    "pieces",
    [[b"\nx"], [b"a\nb"], [b"ab", b"\n"], [b"a\r\nb\nc"], [b"a\r\n\n"], [b"ab\r", b"\n\n"]],
)
def test_a_line_feed_alone_is_refused_as_soon_as_it_is_there(pieces):
    with pytest.raises(BareLineFeed):
        connected(*pieces)[0].read_head(100)


def test_a_bare_line_feed_behind_the_head_is_none_of_it():
    assert connected(b"a\r\n\r\n\n\n")[0].read_head(100) == b"a"


def test_a_line_is_read_through_its_line_feed_and_has_at_most_its_bytes():
    connection, sock, _ = connected(b"ab", b"c\r\nd\n")
    assert connection.read_line(5) == b"abc\r\n"
    assert connection.read_line(2) == b"d\n"
    assert sock.sizes == [65536, 65536]
    for pieces in ([b"abc\r\n"], [b"abc", b"\r\n"], [b"abcd"]):
        with pytest.raises(LineTooLong):
            connected(*pieces, b"")[0].read_line(4)


def test_so_many_bytes_are_read_and_no_more():
    connection, _, _ = connected(b"ab", b"cd", b"ef")
    assert connection.read_exact(3) == b"abc"
    assert connection.read_exact(0) == b""
    assert connection.read_exact(3) == b"def"


def test_a_deadline_covers_all_reads_until_the_next_is_set():
    connection, sock, clock = connected(b"a", b"b", b"c")
    connection.read_exact(1)
    clock.now = 4.0
    connection.read_exact(1)
    assert sock.timeouts == [5.0, 1.0]
    clock.now = 5.0
    with pytest.raises(ReadDeadline):
        connection.read_exact(1)
    connection.set_deadline(2.0)
    assert connection.deadline == 7.0
    assert connection.read_exact(1) == b"c"
    connection.expire()
    with pytest.raises(ReadDeadline):
        connection.read_exact(1)


def test_what_is_there_is_read_after_the_deadline_too():
    connection, _, clock = connected(b"abc")
    connection.read_exact(1)
    clock.now = 100.0
    assert connection.read_exact(2) == b"bc"


def test_a_long_wait_is_cut_into_looks_at_the_deadline():
    connection, sock, _ = connected(TimeoutError(), TimeoutError(), b"a")
    connection.look_s = 0.25
    assert connection.read_exact(1) == b"a"
    assert sock.timeouts == [0.25, 0.25, 0.25]
    connection, sock, _ = connected(TimeoutError(), seconds=0.25)
    connection.look_s = 0.25
    with pytest.raises(ReadDeadline):
        connection.read_exact(1)
    with pytest.raises(ReadDeadline):
        connected(TimeoutError())[0].read_exact(1)


@pytest.mark.parametrize("end", [b"", ConnectionResetError(), OSError()])
def test_a_peer_that_leaves_is_gone_wherever_it_does(end):
    for read in (
        lambda connection: connection.wait_for_data(),
        lambda connection: connection.read_head(100),
        lambda connection: connection.read_line(100),
        lambda connection: connection.read_exact(5),
    ):
        with pytest.raises(PeerGone):
            read(connected(end)[0])
        connection = connected(b"a", end)[0]
        connection.wait_for_data()
        if read.__code__.co_names[0] != "wait_for_data":
            with pytest.raises(PeerGone):
                read(connection)


def test_nobody_waits_for_a_request_beyond_the_deadline():
    with pytest.raises(PeerGone):
        connected(TimeoutError())[0].wait_for_data()
    connection, sock, _ = connected(b"a" * 20_000)
    connection.wait_for_data()
    assert sock.sizes == [8192]
    connection.wait_for_data()  # it is there
    assert sock.sizes == [8192]


def test_a_look_for_the_peer_reads_what_may_be_held_and_no_more():
    connection, sock, _ = connected(b"abc", b"defg", BlockingIOError())
    assert connection.peer_gone(6) is False
    assert (connection.num_buffered, sock.sizes, set(sock.timeouts)) == (6, [6, 3], {0})
    assert connection.peer_gone(6) is False  # full: nothing is read
    assert sock.sizes == [6, 3]
    assert connected(BlockingIOError())[0].peer_gone(6) is False
    assert connected(InterruptedError())[0].peer_gone(6) is False
    assert connected(b"a", b"")[0].peer_gone(6) is True
    assert connected(ConnectionResetError())[0].peer_gone(6) is True


def test_a_write_goes_at_once_as_far_as_it_fits_and_waits_for_the_rest():
    connection, sock, _ = connected()
    connection.send(b"abc")
    connection.send(b"def")
    assert (sock.sent, sock.timeouts) == ([b"abc", b"def"], [0])
    sock.most = 2
    connection.send(b"ghij")
    assert sock.sent[2:] == [b"gh", b"ij"] and sock.timeouts == [0, 30.0]
    sock.most = 0
    connection.send(b"kl")
    assert sock.sent[4:] == [b"kl"] and sock.timeouts == [0, 30.0, 0, 30.0]

    def broken(_data):
        raise ConnectionResetError

    sock.send = broken
    with pytest.raises(PeerGone):
        connection.send(b"m")


def test_a_write_that_defers_leaves_the_rest_in_order_for_the_flush_and_does_not_wait():
    connection, sock, _ = connected()
    sock.most, connection.defers = 2, True
    connection.send(b"abcd")
    connection.send(b"ef")  # behind what is left
    assert (sock.sent, sock.timeouts, connection.unsent) == ([b"ab"], [0], b"cdef")
    connection.defers = False
    connection.send(b"g")
    assert (sock.sent, sock.timeouts, connection.unsent) == ([b"ab", b"cdefg"], [0, 30.0], b"")
    connection.flush()
    assert sock.timeouts == [0, 30.0]


def test_what_a_client_still_sends_after_the_end_is_read_and_dropped_for_a_while():
    connection, sock, _ = connected(b"a" * 100_000, b"b", b"", now=1.0)
    connection.finish(2.0)
    assert sock.how == [socket.SHUT_WR]
    assert connection.deadline == 3.0
    assert sock.coming == [] and connection.num_buffered == 0
    connection, sock, _ = connected(b"a")
    sock.shutdown = lambda _how: (_ for _ in ()).throw(OSError())
    connection.finish(2.0)  # reset already: nothing is waited for
    assert sock.coming == [b"a"]


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", 10)])
def test_an_address_with_a_colon_is_ipv6(host, family):
    try:
        listener = open_listener(host, 0, 5)
    except OSError:
        assert host == "::1", "no IPv4 here"
        pytest.skip("no IPv6 here")
    with listener:
        assert listener.family == family
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        with pytest.raises(OSError):
            open_listener(host, listener.getsockname()[1], 5)
