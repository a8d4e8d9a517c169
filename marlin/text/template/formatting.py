"""Text made by printf-style and brace-style formatting, and JSON: checked for size before Python
makes it.

Formatting never reaches into a value: a brace field is a number or a plain name, without dots,
brackets, a conversion or a format.
"""

import json
import re
from string import Formatter

from marlin.text.template.limits import PADDING, TEXT, Fault
from marlin.text.template.values import to_text

_DIRECTIVE = re.compile(r"%(?:\([^()]*\))?[#0\- +]*(\*|[0-9]*)(?:\.(\*|[0-9]*))?[hlL]?(.?)", re.S)
# Directives that print a float with all of its digits before the point, 309 at most.
_LONG_DIRECTIVES, _FLOAT_CHARS = "diufF", 320

# Work units for each field of a brace format, found and formatted.
_FIELD_WORK = 8


def printf(budget, template, values):
    """`template % values`; widths and precisions are numbers of at most four digits."""
    num_values, _, num_chars = budget.printed(values)
    num_directives = padding = 0
    for match in _DIRECTIVE.finditer(template):
        width, precision, kind = match.groups()
        if kind == "(" or "*" in (width, precision):
            raise Fault("this form of % formatting is not allowed in a template")
        for digits in (width, precision):
            # Nine digits are enough to see that a number is too large, but zeros before it are not.
            wanted = int((digits or "").lstrip("0")[:9] or 0)
            budget.check(PADDING, wanted)
            padding += wanted
        padding += _FLOAT_CHARS if kind in _LONG_DIRECTIVES else 0
        num_directives += 1
    budget.take(TEXT, len(template) + padding + num_directives * (num_chars + num_values))
    return template % values


def format_braces(budget, template, /, *args, **kwargs):
    """`template.format(*args, **kwargs)` for plain fields: {}, {0} and {name}."""
    budget.take(TEXT, len(template))
    pieces, next_index, num_chars = [], 0, 0
    for literal, field, spec, conversion in Formatter().parse(template):
        budget.spend(_FIELD_WORK)
        pieces.append(literal)
        if field is None:
            continue
        if spec or conversion or not (field.isidentifier() or field.isdecimal() or not field):
            raise Fault(f"format field {field[:40]!r} is more than a plain name or number")
        if not field:
            field, next_index = str(next_index), next_index + 1
        piece = to_text(budget, args[int(field)] if field.isdecimal() else kwargs[field])
        num_chars += len(piece)
        budget.take(TEXT, num_chars)
        pieces.append(piece)
    return "".join(pieces)


def to_json(budget, value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """json.dumps, with the defaults that `transformers` gives the tojson filter."""
    num_values, depth, _ = budget.printed(value)
    indent_chars = len(indent) if isinstance(indent, str) else indent or 0
    budget.check(PADDING, indent_chars)
    if separators is not None:
        item_separator, key_separator = separators
        indent_chars += len(item_separator) + len(key_separator)
    budget.check(TEXT, num_values * depth * indent_chars)
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    budget.take(TEXT, len(text))
    return text
