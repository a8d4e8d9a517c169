"""Which of several content types an Accept header field prefers (RFC 9110 section 12.5.1)."""

import re

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUALITY = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")
_RANGE = re.compile(rf"({_TOKEN})/({_TOKEN})")
# More ranges than any client sends; what follows them is not read.
_MAX_RANGES = 32


def preferred(accept, offers):
    """The offer of the highest quality; the first of several.

    Args:
        accept: value of the field, or None without one.
        offers: content types, e.g. "text/plain; version=0.0.4; charset=utf-8". A `version` in a
            range must be the offer's; other parameters of a range say nothing here.

    Returns:
        One of the offers; the first when none is acceptable, which the RFC allows.
    """
    if accept is None:
        return offers[0]
    ranges = [parsed for part in accept.split(",")[:_MAX_RANGES] if (parsed := _parse(part))]
    qualities = [_quality(_parse(offer), ranges) for offer in offers]
    return offers[qualities.index(max(qualities))]


def _parse(text):
    """(type, subtype, version or None, quality) of a media range; None when it is malformed."""
    name, *parameters = (part.strip(" \t") for part in text.split(";"))
    match, given = _RANGE.fullmatch(name), {"q": "1"}
    for parameter in parameters:
        key, _, value = (part.strip(" \t") for part in parameter.partition("="))
        given[key.lower()] = value
    if match is None or _QUALITY.fullmatch(given["q"]) is None:
        return None
    version = given.get("version")
    return match[1].lower(), match[2].lower(), version and version.strip('"'), float(given["q"])


def _quality(offer, ranges):
    """Quality that the most specific range which covers an offer gives it; 0 for none."""
    kind, subtype, version, _ = offer
    best = (-1, 0.0)
    for range_kind, range_subtype, range_version, quality in ranges:
        if range_kind not in (kind, "*") or range_subtype not in (subtype, "*"):
            continue
        if (range_kind == "*" and range_subtype != "*") or range_version not in (version, None):
            continue
        specific = (range_kind != "*") + (range_subtype != "*") + (range_version is not None)
        best = max(best, (specific, quality))
    return best[1]
