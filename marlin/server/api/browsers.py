"""What a web page that a user happens to visit must not do with a server on the user's machine.

Owns the rules of hosts, origins and media types, and the headers by which an operator lets a page
in. Sources: the Fetch standard (CORS, Origin), Fetch Metadata, RFC 9110 section 8.3. Knows no
endpoint.
"""

import functools
import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from marlin.errors import ForbiddenError, MediaTypeError
from marlin.server.http.handler import Handler
from marlin.turns import is_uid

ANY_ORIGIN = "*"
_PORTS = {"http": 80, "https": 443}
_NAMES = re.compile(r"[A-Za-z0-9-]+(?:, ?[A-Za-z0-9-]+)*")  # of a preflight's request headers
# A preflight need not be asked again for so long: browsers take two hours at most.
_MAX_AGE_S = 7200
_SHOWN_TO_PAGES = "X-Request-ID, X-Ignored-Parameters, Retry-After"


class Browsers:
    """The rules of one server.

    Args:
        has_keys: a key is asked for; a page has none, so that hosts and origins do not matter.
        hosts: names with dots that clients on this machine may call the server.
        origins: of pages that are let in, ANY_ORIGIN for all.
    """

    def __init__(self, has_keys: bool, hosts: Iterable[str] = (), origins: Iterable[str] = ()):
        self._has_keys = has_keys
        self._hosts = frozenset(map(str.lower, hosts))
        self._origins = frozenset(origins)

    def check(self, handler: Handler) -> None:
        """Raise ForbiddenError or MediaTypeError for what a foreign page may have sent."""
        origin = handler.headers.get("origin")
        # No page reaches a Unix socket; who passes one's requests on answers for it.
        is_reachable = not is_uid(handler.client_address[0])
        if is_reachable and not self._has_keys and not self._lets_in(origin):
            host = handler.headers.get("host", "")
            # No browser sends HTTP/1.0, and proxies do.
            is_near = handler.head.minor > 0 and is_loopback(handler.client_address[0])
            if is_near and not self._is_ours(host):
                name = _name(host)[:100]
                raise ForbiddenError(
                    f"clients on this machine may not call the server {name}; --allowed-host "
                    f"{name} lets them, and so does a key"
                )
            if origin is not None and not _is_same(origin, host):
                raise ForbiddenError(
                    f"pages of {origin[:100]} may not use this server; --allow-origin lets them, "
                    "and so does a key"
                )
            if handler.headers.get("sec-fetch-site") == "cross-site":
                raise ForbiddenError("pages of other sites may not use this server")
        if handler.command == "POST":
            _check_media_type(handler.headers.get("content-type"))

    def answers_preflight(self, handler: Handler) -> bool:
        """Whether a request asks what a page may send, which has been answered then."""
        asked = handler.headers.get("access-control-request-method")
        origin = handler.headers.get("origin")
        if handler.command != "OPTIONS" or asked is None or not self._lets_in(origin):
            return False
        fields = [
            ("Access-Control-Allow-Methods", "GET, HEAD, POST"),
            ("Access-Control-Max-Age", str(_MAX_AGE_S)),
        ]
        names = handler.headers.get("access-control-request-headers", "")
        if _NAMES.fullmatch(names):
            fields.append(("Access-Control-Allow-Headers", names))
        handler.reply(204, b"", None, fields)
        return True

    def fields(self, handler: Handler) -> list[tuple[str, str]]:
        """Headers of whatever answers a request, for a page that is let in."""
        if not self._origins:
            return []
        origin = handler.headers.get("origin")
        if not self._lets_in(origin):
            return [("Vary", "Origin")]
        return [
            ("Access-Control-Allow-Origin", origin or ANY_ORIGIN),
            ("Access-Control-Expose-Headers", _SHOWN_TO_PAGES),
            ("Vary", "Origin"),
        ]

    def _lets_in(self, origin):
        return origin is not None and bool(self._origins & {origin, ANY_ORIGIN})

    def _is_ours(self, host):
        """Whether no foreign page can have this host: its name would have to lead here, and names
        that anybody can have have dots."""
        name = _name(host)
        return "." not in name or name in self._hosts or _is_address(name)


@functools.lru_cache(maxsize=256)
def is_loopback(address: str) -> bool:
    """Whether a peer is on this machine."""
    peer = ipaddress.ip_address(address)
    mapped = peer.ipv4_mapped if peer.version == 6 else None
    return (mapped or peer).is_loopback


def _name(host):
    """The name of a Host field, without its port."""
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdecimal():
        name = host
    return name.strip("[]").lower()


def _is_address(name):
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_same(origin, host):
    """Whether a page's origin is the host that it asks; a proxy may have the scheme changed."""
    try:
        page = urlsplit(origin)
        own = urlsplit(f"//{host}")
        ports = page.port or _PORTS.get(page.scheme), own.port or _PORTS.get(page.scheme)
    except ValueError:
        return False
    return page.hostname is not None and page.hostname == own.hostname and ports[0] == ports[1]


def _check_media_type(given):
    """A page can send other types without asking first."""
    if given is None or given.partition(";")[0].strip().lower() != "application/json":
        said = "none" if given is None else given[:100]
        raise MediaTypeError(
            f"a POST needs the header Content-Type: application/json, got {said}; "
            "curl has it with --json, or with -H 'Content-Type: application/json'"
        )
