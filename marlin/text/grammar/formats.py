"""The formats of JSON Schema's strings as regular expressions.

Where a format's own grammar has more than a regular expression says, the expression has less.
"""

_OCTET = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"({_OCTET}\.){{3}}{_OCTET}"
_H = "[0-9A-Fa-f]{1,4}"
_IPV6 = "|".join(
    [
        rf"({_H}:){{7}}{_H}",
        *(rf"({_H}:){{{n}}}(:{_H}){{1,{7 - n}}}" for n in range(1, 7)),
        rf":(:{_H}){{1,7}}",
        rf"({_H}:){{1,7}}:",
        "::",
        rf"::(ffff(:0{{1,4}})?:)?{_IPV4}",
    ]
)
_DATE = (
    r"\d{4}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)"
    r"|02-(0[1-9]|1\d|2[0-8]))|(\d\d(0[48]|[2468][048]|[13579][26])"
    r"|([02468][48]|[13579][26]|[2468]0)00)-02-29"
)
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = rf"{_LABEL}(\.{_LABEL}){{0,8}}"
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_HEX = "[0-9A-Fa-f]"
_PCHAR = rf"([A-Za-z0-9._~!$&'()*+,;=:@-]|%{_HEX}{{2}})"
_AUTHORITY = rf"([A-Za-z0-9._~!$&'()*+,;=:-]|%{_HEX}{{2}})*@"
_REST = rf"(\?({_PCHAR}|[/?])*)?(#({_PCHAR}|[/?])*)?"
_NET = rf"//({_AUTHORITY})?([A-Za-z0-9._~-]+|\[({_IPV6})\])?(:\d{{0,5}})?(/{_PCHAR}*)*"
_URI = rf"[A-Za-z][A-Za-z0-9+.-]*:({_NET}|/?{_PCHAR}+(/{_PCHAR}*)*){_REST}"
# The first part of a path without a scheme has no colon, which would end one.
_NO_COLON = rf"([A-Za-z0-9._~!$&'()*+,;=@-]|%{_HEX}{{2}})"
_RELATIVE = rf"({_NET}|/({_PCHAR}+(/{_PCHAR}*)*)?|{_NO_COLON}+(/{_PCHAR}*)*)?{_REST}"
_DURATION_TIME = r"T(\d+H(\d+M(\d+S)?)?|\d+M(\d+S)?|\d+S)"
_DURATION_DATE = r"(\d+Y(\d+M(\d+D)?)?|\d+M(\d+D)?|\d+D)"
_POINTER = r"(/([^/~]|~[01])*)*"

STRING_FORMATS = {
    "date-time": rf"({_DATE})[Tt]{_TIME}",
    "date": _DATE,
    "time": _TIME,
    "duration": rf"P({_DURATION_DATE}({_DURATION_TIME})?|{_DURATION_TIME}|\d+W)",
    "email": rf"{_ATOM}(\.{_ATOM})*@{_HOST}",
    "hostname": _HOST,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "uuid": rf"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}",
    "uri": _URI,
    "uri-reference": rf"{_URI}|{_RELATIVE}",
    "json-pointer": _POINTER,
    "relative-json-pointer": rf"(0|[1-9]\d*)(#|{_POINTER})",
}
STRING_FORMATS |= {
    "ip-address": _IPV4,
    "host-name": _HOST,
    "iri": _URI,
    "idn-email": STRING_FORMATS["email"],
}
# Formats that say nothing of a string's text: JSON Schema has none of them, and OpenAPI's "byte" is
# of base64 only by that.
ANY_STRING = {"password", "binary", "byte", "string", "text", "textarea"}
INTEGER_FORMATS = {"int32": 31, "int64": 63}
# Formats that say how a number is kept, not what it is.
ANY_NUMBER = {"float", "double", "decimal", "number", "integer"}
