"""The page at /: a chat and a view of the server in one file, and what a browser may do with it.

The file is page.html, read when this module is imported and served from memory. Its policy allows
its own script and style by their digests, requests to this server, and nothing else. Source:
Content Security Policy Level 3.
"""

import base64
import hashlib
import re
from pathlib import Path

HTML_TYPE = "text/html; charset=utf-8"
CONTENT = Path(__file__).with_suffix(".html").read_bytes()


def _source(tag):
    """The digest of what is between a tag's ends, as a policy names it."""
    inner = re.search(rf"<{tag}>(.*)</{tag}>".encode(), CONTENT, re.DOTALL)
    assert inner, f"page.html has no {tag}"
    return f"'sha256-{base64.b64encode(hashlib.sha256(inner[1]).digest()).decode()}'"


_POLICY = (
    f"default-src 'none'; script-src {_source('script')}; style-src {_source('style')}; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FIELDS = (
    ("Content-Security-Policy", _POLICY),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), microphone=(), geolocation=()"),
    ("Vary", "Accept"),
)
