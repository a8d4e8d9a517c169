"""What a template is told that cannot be parsed or rendered: each refusal by its words and line."""

from datetime import datetime

import pytest

from marlin.errors import TemplateError
from marlin.text.chat_template import ChatTemplate

VARIABLES = {
    "a": 1,
    "s": "Hello",
    "l": [3, 1],
    "d": {"x": 1},
    "n": None,
    "t": True,
    "f": 1.5,
    "people": [{"name": "Bob"}],
}
# {what a print holds: what is said}, on line 2.
EXPRESSIONS = {
    # What does not parse.
    "": "expected an expression, found end of print",
    "+": "expected an expression, found end of print",
    "*": "expected an expression, found '*'",
    "a b": "expected end of print, found 'b'",
    "a 1": "expected end of print, found 1",
    "[1 2]": "expected ',', found 2",
    "{1 2}": "expected ':', found 2",
    "a.": "expected name, found end of print",
    "a.'b'": "expected name, found 'b'",
    "a|": "expected name, found end of print",
    "a|1": "expected name, found 1",
    "a|b.": "expected name, found end of print",
    "a is": "expected name, found end of print",
    "s[]": "expected a subscript, found ']'",
    "s[1:2:3:4]": "a slice has at most three parts",
    "a is defined is true": "tests cannot be chained: use 'and'",
    "range(*l, *l)": "misplaced * in a call",
    "range(**d, *l)": "misplaced * in a call",
    "range(**d, **d)": "misplaced * in a call",
    "range(a=1, 2)": "positional argument after a keyword argument",
    "range(*l, 2)": "positional argument after a keyword argument",
    "range(**d, a=1)": "positional argument after a keyword argument",
    "a)": "unexpected ')'",
    "(a]": "unexpected ']'",
    "a!": "unexpected '!'",
    "\u00b2": "'\u00b2' is not a name",
    "'\\x4'": "bad string: 'unicodeescape' codec can't decode bytes in position 0-1: "
    "truncated \\xXX escape",
    "(a": "unexpected '}'",
    # Calls, filters and tests.
    "5(1)": "integer cannot be called",
    "s()": "string cannot be called",
    "q()": "'q' is undefined",
    "1|nope": "no filter named 'nope'",
    "1|nope.nope": "no filter named 'nope.nope'",
    "1 is nope": "no test named 'nope'",
    "1 is not nope": "no test named 'nope'",
    "dict(**5)": "** needs a dict, not integer",
    "dict(**none)": "** needs a dict, not none",
    "range(*5)": "integer is not iterable",
    # Undefined: its reason.
    "q.x": "'q' is undefined",
    "q['x']": "'q' is undefined",
    "q[1]": "'q' is undefined",
    "q[1:]": "'q' is undefined",
    "q + 1": "'q' is undefined",
    "1 + q": "'q' is undefined",
    "-q": "'q' is undefined",
    "q < 1": "'q' is undefined",
    "q <= 1": "'q' is undefined",
    "q > 1": "'q' is undefined",
    "1 >= q": "'q' is undefined",
    "q|abs": "'q' is undefined",
    "q|int": "'q' is undefined",
    "q|float": "'q' is undefined",
    "q|round": "'q' is undefined",
    "d.q.x": "dict has no 'q'",
    "d['q'].x": "dict has no 'q'",
    "d[5].x": "dict has no item 5",
    "d[1.5].x": "dict has no item 1.5",
    "d[none].x": "dict has no item none",
    "d[l].x": "dict has no item list",
    "l[9].x": "list has no item 9",
    "l[2].x": "list has no item 2",
    "l[-3].x": "list has no item -3",
    "l.x.x": "list has no 'x'",
    "a.x.x": "integer has no 'x'",
    "n.x.x": "none has no 'x'",
    "t.x.x": "boolean has no 'x'",
    "f.x.x": "number has no 'x'",
    "s.x.x": "string has no 'x'",
    "(1,).x.x": "tuple has no 'x'",
    "range(3).x.x": "range has no 'x'",
    "d.keys().x.x": "dict_keys has no 'x'",
    "range.x.x": "function has no 'x'",
    "namespace().x.x": "namespace has no 'x'",
    "(l|select).x.x": "stream has no 'x'",
    "('a' if 0).x": "the condition of an inline if is false, and it has no else",
    "([]|first).x": "no first item: the list is empty",
    "([]|last).x": "no last item: the list is empty",
    "([]|min).x": "no smallest or largest item: the list is empty",
    "([]|max).x": "no smallest or largest item: the list is empty",
    "(a|attr(5)).x": "integer has no such attribute",
    "(a|attr('x' * 65)).x": "integer has no such attribute",
    "(d|attr('x')).x": "dict has no attribute 'x'",
    "(q|attr('x')).x": "undefined has no attribute 'x'",
    "l.append.x": "'append' of a list is not allowed in a template",
    "d.update.x": "'update' of a dict is not allowed in a template",
    # Operators.
    "'a' - 1": "'-' is not defined for string and integer",
    "1 - 'a'": "'-' is not defined for integer and string",
    "'a' + 1": "'+' is not defined for string and integer",
    "[] + ()": "'+' is not defined for list and tuple",
    "'a' * 'b'": "'*' is not defined for string and string",
    "1.5 * 'b'": "'*' is not defined for number and string",
    "'a' * 1.5": "'*' is not defined for string and number",
    "1 % 'a'": "'%' is not defined for integer and string",
    "'a' ** 2": "'**' is not defined for string and integer",
    "none / 1": "'/' is not defined for none and integer",
    "1 // none": "'//' is not defined for integer and none",
    "-'a'": "'-' is not defined for integer and string",
    "+none": "'+' is not defined for integer and none",
    "1 / 0": "division by zero",
    "1 % 0": "integer modulo by zero",
    "(0 - 8) ** 0.5": "the power of a negative number to a fraction",
    "1 < 'a'": "'<' not supported between instances of 'int' and 'str'",
    "'a' in 5": "argument of type 'int' is not ",
    "5[1:]": "integer cannot be sliced",
    "none[1:]": "none cannot be sliced",
    "d[1:]": "dict cannot be sliced",
    "('a'|safe).upper": "text that is marked safe has no 'upper' here",
    "{l: 1}": "unhashable type: 'list'",
    # Formats.
    "'%*d' % (1, 2)": "this form of % formatting is not allowed in a template",
    "'%.*f' % (1, 2)": "this form of % formatting is not allowed in a template",
    "'%((x))s' % d": "this form of % formatting is not allowed in a template",
    "'%s %s' % 1": "not enough arguments for format string",
    "'%d' % 'x'": "%d format: a real number is required, not str",
    "'{!r}'.format(1)": "format field '' is more than a plain name or number",
    "'{:>9}'.format(1)": "format field '' is more than a plain name or number",
    "'{a.b}'.format(a=1)": "format field 'a.b' is more than a plain name or number",
    "'{0[1]}'.format(1)": "format field '0[1]' is more than a plain name or number",
    "('{' ~ '.' * 50 ~ '}').format(1)": "format field '" + "." * 40 + "' is more than a plain name",
    "'{x}'.format(a=1)": "no such key: 'x'",
    "'{1}'.format(1)": "tuple index out of range",
    "'{'.format(1)": "Single '{' encountered in format string",
    "{(1, 2): 3}|tojson": "keys must be str, int, float, bool or None, not tuple",
    "range|tojson": "Object of type Function is not JSON serializable",
    # Methods and filters.
    "', '.join([1])": "join needs strings, not integer",
    "', '.join(5)": "integer is not iterable",
    "5|indent": "indent needs a string, not integer",
    "'%s'|format(1, a=2)": "format takes positional or keyword arguments, not both",
    "'%s'|safe|format(1)": "format is not for text that is marked safe here",
    "1.5|round(1, 'up')": "round takes the methods 'common', 'ceil' and 'floor'",
    "1.5|round(309)": "round takes a precision of at most 308",
    "5|length": "integer has no length",
    "l|select|length": "stream has no length",
    "none|length": "none has no length",
    "l|select|last": "a stream has no last item; make it a list first",
    "5|last": "integer is not iterable",
    "5|first": "integer is not iterable",
    "5|list": "integer is not iterable",
    "5|join": "integer is not iterable",
    "5|sum": "integer is not iterable",
    "5|items": "items needs a dict, not integer",
    "l|items": "items needs a dict, not list",
    "l|map(5)|list": "no such filter",
    "l|map('nope')|list": "no filter named 'nope'",
    "l|map|list": "map needs the name of a filter, or attribute= and perhaps default=",
    "l|map(default=1)|list": "map needs the name of a filter, or attribute= and perhaps default=",
    "l|map(attribute='a', x=1)|list": "map needs the name of a filter, or attribute= and perhaps",
    "l|select(5)|list": "no such test",
    "l|select('nope')|list": "no test named 'nope'",
    "l|selectattr|list": "selectattr and rejectattr need the name of an attribute",
    "l|rejectattr|list": "selectattr and rejectattr need the name of an attribute",
    "l|dictsort": "dictsort needs a dict, and by='key' or by='value'",
    "d|dictsort(by='x')": "dictsort needs a dict, and by='key' or by='value'",
    "5 in s.index": "argument of type 'Function' is not ",
    "s.index('z')": "substring not found",
    "l.index(9)": "9 is not in list",
    "[1, 'a']|sort": "'<' not supported between instances of 'str' and 'int'",
    # Functions.
    "range(1, 2, 0)": "range() arg 3 must not be zero",
    "range('a')": "'str' object cannot be interpreted as an integer",
    "dict([1])": "integer is not iterable",
    "dict(['abc'])": "too many values to unpack (expected 2)",
    "dict(5)": "integer is not iterable",
    "namespace({1: 2})": "a namespace has names, not integer keys",
    "namespace(_x=2)": "a namespace has no room for '_x': names must not start with '_'",
}
# {a template whose line 2 is at fault: what is said}
BLOCKS = {
    "\n{% endif %}": "unknown tag 'endif'",
    "\n{% frob %}": "unknown tag 'frob'",
    "\n{% 5 %}": "expected name, found 5",
    "\n{% include 'x' %}": "'include' is refused: a chat template stands alone",
    "\n{% import 'x' as y %}": "'import' is refused: a chat template stands alone",
    "\n{% from 'x' import y %}": "'from' is refused: a chat template stands alone",
    "\n{% extends 'x' %}": "'extends' is refused: a chat template stands alone",
    "\n{% break %}": "'break' outside a loop",
    "\n{% continue %}": "'continue' outside a loop",
    "{% for x in [1] %}{% macro m() %}\n{% break %}{% endmacro %}{% endfor %}":
        "'break' outside a loop",
    "{% for x in [1] %}{% else %}\n{% break %}{% endfor %}": "'break' outside a loop",
    "\n{% if a %}x": "this block has no elif or else or endif",
    "\n{% for x in l %}x": "this block has no endfor or else",
    "\n{% macro m() %}x": "this block has no endmacro",
    "\n{% set x %}x": "this block has no endset",
    "\n{% filter upper %}x": "this block has no endfilter",
    "\n{% with %}x": "this block has no endwith",
    "\n{% block b %}x": "this block has no endblock",
    "\n{% generation %}x": "this block has no endgeneration",
    "\n{% if a b %}{% endif %}": "expected end of tag, found 'b'",
    "\n{% if a %}{% endif b %}": "expected end of tag, found 'b'",
    "\n{% for x l %}{% endfor %}": "expected 'in', found 'l'",
    "\n{% for 5 in l %}{% endfor %}": "expected name, found 5",
    "\n{% for (x in l %}{% endfor %}": "unexpected '}'",
    "\n{% set true = 1 %}": "cannot assign to 'true'",
    "\n{% set None = 1 %}": "cannot assign to 'None'",
    "\n{% for none in l %}{% endfor %}": "cannot assign to 'none'",
    "\n{% set x.y = 1 %}": "cannot set 'y' of 'x': it is not a namespace",
    "\n{% set a.y = 1 %}": "cannot set 'y' of 'a': it is not a namespace",
    "{% set ns = namespace() %}\n{% set ns._y = 1 %}":
        "a namespace has no room for '_y': names must not start with '_'",
    "\n{% for x.y in l %}{% endfor %}": "expected 'in', found '.'",
    "\n{% set x, y = [1] %}": "cannot unpack 1 values into 2 names",
    "\n{% set x, y = [1, 2, 3] %}": "cannot unpack 3 values into 2 names",
    "\n{% set x, y = 5 %}": "integer is not iterable",
    "\n{% for x, y in l %}{% endfor %}": "integer is not iterable",
    "\n{% for x in 5 %}{% endfor %}": "integer is not iterable",
    "\n{% for x in l if x is nope %}{% endfor %}": "no test named 'nope'",
    "\n{% macro m(b=1, c) %}{% endmacro %}":
        "parameter 'c' without a default follows one with a default",
    "\n{% macro m(5) %}{% endmacro %}": "expected name, found 5",
    "\n{% macro m(b c) %}{% endmacro %}": "expected ',', found 'c'",
    "\n{% macro m %}{% endmacro %}": "expected '(', found end of tag",
    "{% macro m(b) %}{{ b }}{% endmacro %}\n{{ m(1, 2) }}":
        "macro 'm' does not take varargs: 1 too many",
    "{% macro m(b) %}{{ b }}{% endmacro %}\n{{ m(1, 2, 3) }}":
        "macro 'm' does not take varargs: 2 too many",
    "{% macro m(b) %}{{ b }}{% endmacro %}\n{{ m(b=1, c=2) }}":
        "macro 'm' does not take kwargs: 1 too many",
    "{% macro m(b) %}{{ b }}{% endmacro %}\n{{ m(1, b=2) }}":
        "macro 'm' does not take kwargs: 1 too many",
    "{% macro m(b) %}\n{{ b.c }}{% endmacro %}{{ m() }}": "parameter 'b' was not given",
    "\n{% with x = 1 y = 2 %}{% endwith %}": "expected ',', found 'y'",
    "\n{% with x %}{% endwith %}": "expected '=', found end of tag",
    "\n{% print %}": "expected an expression, found end of tag",
    "\n{% set x | nope %}{% endset %}": "no filter named 'nope'",
    "\n{% filter nope %}{% endfilter %}": "no filter named 'nope'",
    "{% for x in l %}\n{{ loop.nope.x }}{% endfor %}": "loop has no 'nope'",
    "{% for x in l %}\n{{ loop.previtem.x }}{% endfor %}": "there is no previous item",
    "{% for x in [1] %}\n{{ loop.nextitem.x }}{% endfor %}": "there is no next item",
    "{% for x in l %}\n{{ loop.cycle() }}{% endfor %}": "integer modulo by zero",
    "{% for x in l %}\n{{ loop() }}{% endfor %}": "loop cannot be called",
    "\n{# x": "missing end of comment",
    "\n{% raw %} x": "missing end of raw block",
    "\n{% if a": "this tag is never closed",
    "\n{{ a": "this tag is never closed",
    "\n{% raw x %}{% endraw %}": "unknown tag 'raw'",
    "{{ a\n! }}": "unexpected '!'",
    "{# \n #}{% frob %}": "unknown tag 'frob'",
    "{% raw %}\n{% endraw %}{% frob %}": "unknown tag 'frob'",
    "{{ 'a\nb' }}{% frob %}": "unknown tag 'frob'",
    "\r\n{% frob %}": "unknown tag 'frob'",
    "\r{% frob %}": "unknown tag 'frob'",
}  # fmt: skip


def refusal(source):
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source).render(VARIABLES)
    return caught.value.message


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_that_has_no_value_is_refused_by_what_is_wrong(expression):
    said = refusal("x\n{{ " + expression + " }}")
    assert said.startswith("template line 2: " + EXPRESSIONS[expression])


@pytest.mark.parametrize("source", BLOCKS)
def test_a_block_that_cannot_be_run_is_refused_by_its_line(source):
    assert refusal(source).startswith("template line 2: " + BLOCKS[source])


@pytest.mark.parametrize(
    ("value", "kind", "names"),
    [
        ("l", "list", "append clear extend insert pop remove reverse sort"),
        ("d", "dict", "clear pop popitem setdefault update"),
    ],
)
def test_what_would_change_a_value_is_refused_by_name_and_hides_an_entry(value, kind, names):
    for name in names.split():
        said = f"template line 1: {name!r} of a {kind} is not allowed in a template"
        assert refusal(f"{{{{ {value}.{name}.x }}}}") == said
        assert refusal(f"{{{{ {value}.{name}() }}}}") == said
        assert refusal(f"{{{{ {{'{name}': 1}}.{name}.x }}}}" if kind == "dict" else
                       f"{{{{ {value}['{name}'].x }}}}") == said  # fmt: skip


def test_a_block_that_is_not_closed_is_named_by_the_line_that_opened_it():
    assert refusal("\n{% if a %}x{% else %}\n\n") == "template line 2: this block has no endif"


def test_what_a_clock_refuses_is_told_of_the_line():
    class Broken(datetime):
        def strftime(self, format):
            raise MemoryError

    with pytest.raises(TemplateError, match="^template line 3: out of memory$"):
        ChatTemplate("\n\n{{ strftime_now('%Y') }}").render({}, now=lambda: Broken(2026, 1, 1))


def test_a_message_of_the_templates_own_has_no_line():
    assert refusal("\n{{ raise_exception(5) }}") == "5"


@pytest.mark.parametrize(
    ("value", "kind"),
    [(object(), "object"), ({1, 2}, "set"), (b"x", "bytes"), (range(3), "range")],
)
def test_a_variable_that_json_does_not_have_is_named_with_its_kind(value, kind):
    with pytest.raises(TemplateError) as caught:
        ChatTemplate("x").render({"a": 1, "messages": [{"content": value}]})
    expected = f"template variable 'messages' holds a {kind}, not a JSON value"
    assert caught.value.message == expected
