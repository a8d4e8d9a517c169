"""The template language piece by piece, each compared with jinja2 as `transformers` sets it up."""

import re
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import _compile_jinja_template as compile_with_jinja2

from marlin.errors import TemplateError
from marlin.text.chat_template import ChatTemplate

VARIABLES = {
    "a": 1,
    "b": 2.5,
    "s": "Hello World",
    "l": [3, 1, 2],
    "d": {"x": 1, "y": {"z": [1, 2]}, "items": 5, "b": 2},
    "n": None,
    "t": True,
    "zero": 0,
    "minus": -1,
    "empty": "",
    "nothing": {},
    "pair": (1, 2),
    "u": "Ünï\n  code\n\n",
    "people": [
        {"name": "Bob", "age": 3, "on": True},
        {"name": "al", "age": 7, "on": False},
        {"name": "Cy", "age": 3},
    ],
}
DATA = Path(__file__).parents[1] / "data"


def expressions_by_topic():
    """{topic: [expression]} of the data file: a `# topic` line, then an expression a line."""
    topics = {}
    for line in (DATA / "template_expressions.txt").read_text().splitlines():
        if line.startswith("# "):
            current = topics.setdefault(line[2:], [])
        elif line:
            current.append(line)
    return topics


EXPRESSIONS = expressions_by_topic()
BLOCKS = (DATA / "template_blocks.txt").read_text().splitlines()
WHITE_SPACE = [
    "  {% if true %}\n   x\n  {%- endif %}  \n  {%+ if true +%}\n y\n   {% endif -%}   \n\n z",
    " z {{- a -}}   w\n\n {{ a -}} \n\n x",
    " {# c #}\n {#- c -#}  \n {%- raw %}\n {{ raw }} {% x %}\n {% endraw +%}\n end\n\n",
    "{% raw -%}   {{ x }}  {%- endraw %}{{ '{{' }}{{ '}}' }}",
    "{%- for x in l -%}  {{ x }}  {%- endfor -%}\n tail\n",
    "a\n  {#- comment -#}\n  b\n  {# c #}\nc\n  {{ a }}\n  {% set x = 1 %}  \nd\n",
    "a\r\n{% if a %}\r\nb\r{% endif %}\r\nc\r\n",
    "\t{% if a %}\t\n\t{{ a }}\t\n\t{% endif %}\n\n",
    "{{ a }}\n{{ b }}\n  {% raw %}  x  {% endraw %}  \n{# x\n\n #}\nz",
    "{{ a -}} \n  {% if a -%}\n\n x {% endif +%} \n{{+ a }}",
    "",
    "\n",
    "{ {a} % # } {{ '%}' }}{% if '%}' %}x{% endif %}",
]


def theirs(source):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            return compile_with_jinja2(source).render(**VARIABLES)
        except Exception:
            return None


def ours(source):
    try:
        return ChatTemplate(source).render(VARIABLES)
    except TemplateError:
        return None


@pytest.mark.parametrize("topic", EXPRESSIONS)
def test_expressions_give_what_jinja2_gives(topic):
    sources = ["{{ " + expression + " }}" for expression in EXPRESSIONS[topic]]
    assert {source: ours(source) for source in sources} == {s: theirs(s) for s in sources}


@pytest.mark.parametrize("source", BLOCKS)
def test_blocks_do_what_they_do_in_jinja2(source):
    assert ours(source) == theirs(source)


@pytest.mark.parametrize("source", WHITE_SPACE)
def test_white_space_is_kept_where_jinja2_keeps_it(source):
    expected = theirs(source)
    assert expected is not None
    assert ours(source) == expected


# Of jinja2's language, but in no published chat template.
LEFT_OUT = [
    ("{% for x in l recursive %}{{ loop(x) }}{% endfor %}", "'recursive'"),
    ("{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}x{% endcall %}", "tag 'call'"),
    ("{{ cycler('a', 'b').next() }}", "'cycler'"),
    ("{{ joiner()() }}", "'joiner'"),
    ("{{ people|groupby('age') }}", "'groupby'"),
    ("{{ l|batch(2)|list }}", "'batch'"),
    ("{{ l|slice(2)|list }}", "'slice'"),
    ("{{ s|center(40) }}", "'center'"),
    ("{{ s.center(40) }}", "'center'"),
    ("{{ s|truncate(3) }}", "'truncate'"),
    ("{{ s|wordcount }}", "'wordcount'"),
    ("{{ '{:>20}'.format(s) }}", "format field ''"),
    ("{{ '{a!r}'.format(a=s) }}", "format field 'a'"),
]


@pytest.mark.parametrize("source, name", LEFT_OUT)
def test_what_no_published_template_uses_is_refused_by_name(source, name):
    with pytest.raises(TemplateError, match=f"template line 1: .*{re.escape(name)}"):
        ChatTemplate(source).render(VARIABLES)


# Names only: jinja2 folds constants, and in folding reads `none[1:]` as undefined, not as an error.
ATOMS = st.sampled_from("a b s l d n t u people q zero minus empty nothing pair".split())
NAMES = "trim upper length first last list string int abs sort reverse join tojson unique sum title"
TEST_NAMES = "defined none string number mapping sequence iterable odd true upper boolean".split()
METHOD_NAMES = "upper split strip keys get values startswith count index copy append".split()
OPERATORS = "+ - * / // % ~ == != < >= in and or".split()


def _compound(inner):
    infix = st.builds("({} {} {})".format, inner, st.sampled_from(OPERATORS), inner)
    filtered = st.builds("({}|{})".format, inner, st.sampled_from(NAMES.split()))
    tested = st.builds("({} is {})".format, inner, st.sampled_from(TEST_NAMES))
    item = st.builds("({})[{}]".format, inner, inner)
    cut = st.builds("({})[{}:{}]".format, inner, inner, inner)
    method = st.builds("({}).{}({})".format, inner, st.sampled_from(METHOD_NAMES), inner)
    chosen = st.builds("({} if {} else {})".format, inner, inner, inner)
    listed = st.builds("[{}, {}]".format, inner, inner)
    return st.one_of(infix, filtered, tested, item, cut, method, chosen, listed)


# jinja2 prints what has no text of its own with its address.
ADDRESSED = ("object at", "generator", "function", "method", "_iterator", "reversed")


@settings(max_examples=400)
@given(st.recursive(ATOMS, _compound, max_leaves=6))
def test_generated_expressions_give_what_jinja2_gives(expression):
    source = "{{ " + expression + " }}"
    expected = theirs(source)
    if expected is None or not any(word in expected.lower() for word in ADDRESSED):
        assert ours(source) == expected


EXPRESSION = st.recursive(ATOMS, _compound, max_leaves=3)
# What a variable may grow by, and what only looks like growing.
GROWTHS = ("~ {}", "+ {}", "~ {} + 'z'", "+ 'z' ~ {}", "~ {} if t", "~ {}|trim", "- {}", "~ {},")
GROW = "{{% set ns.o = ns.o {} %}}{{{{ ns.o }}}}"
BLOCK_FORMS = (
    "{{% if {} %}}{}{{% elif {} %}}{{% set ns.o = x %}}{{% else %}}{}{{% endif %}}",
    "{{% for i in {} if {} %}}{}{{{{ loop.index ~ i }}}}{}{{% else %}}-{{% endfor %}}",
    "{{% macro m(p, x={}) %}}{}{{{{ p }}}}{{% endmacro %}}{{{{ m({}) ~ m() }}}}{}",
    "{{% set x = {} %}}{}{{% set x = x ~ {} %}}{{{{ x }}}}{}",
    "{{% with x = {} %}}{}{{% set y | upper %}}{{{{ {} }}}}{}{{% endset %}}{{% endwith %}}",
)


GROWN = st.builds(
    lambda how, value: GROW.format(how.format(value)), st.sampled_from(GROWTHS), EXPRESSION
)


def _block(inner):
    forms = st.sampled_from(BLOCK_FORMS)
    return st.builds(str.format, forms, EXPRESSION, inner, EXPRESSION, inner)


@settings(max_examples=150)
@given(st.recursive(GROWN, _block, max_leaves=5), st.sampled_from(("''", "'<'", "none", "l")))
def test_generated_blocks_do_what_they_do_in_jinja2(blocks, start):
    source = f"{{% set ns = namespace(o={start}) %}}{blocks}"
    expected = theirs(source)
    if expected is None or not any(word in expected.lower() for word in ADDRESSED):
        assert ours(source) == expected
