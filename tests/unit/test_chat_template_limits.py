"""Hostile templates: each must end soon, in one TemplateError, whatever it tries."""

import ast
import time
import tracemalloc
from pathlib import Path

import pytest

from marlin.errors import TemplateError
from marlin.text import chat_template
from marlin.text.chat_template import ChatTemplate
from marlin.text.template import limits
from marlin.text.template.limits import MAX_SECONDS as MAX_RENDER_SECONDS
from marlin.text.template.limits import MAX_WORK, WORK_PER_LOOK, Budget, Fault

# A render that uses its whole budget takes about 1.5 s; a shared machine may be much slower.
MAX_SECONDS = 15
# Most hostile templates get so much less of both: what is charged too little shows at any budget.
LESS = 3

DOUBLED = (
    "{% set ns = namespace(x=SEED) %}{% for i in range(60) %}{% set ns.x = PAIR %}{% endfor %}"
)
LISTS = DOUBLED.replace("SEED", "[1]").replace("PAIR", "[ns.x, ns.x]")
TUPLES = DOUBLED.replace("SEED", "(1,)").replace("PAIR", "(ns.x, ns.x)")
LONG = "{% set x = 'a' * 4000000 %}"
FOREVER = "{% for i in range(9999) %}{% for j in range(9999) %}BODY{% endfor %}{% endfor %}"
# Python hashes an integer as its remainder by 2**61 - 1: these are all 0.
COLLIDING = [str(i * (2**61 - 1)) for i in range(8500)]
KEYS = "{% set keys = [" + ",".join(COLLIDING) + "] %}"
PAIRS = "{% set pairs = [" + ",".join(f"[{key},1]" for key in COLLIDING) + "] %}"
NUMBERED = "{% set d = {" + ",".join(f"{i}:1" for i in range(12000)) + "} %}"
NAMED = "{% set d = {" + ",".join(f"'{i}':1" for i in range(12000)) + "} %}"
TERMS = "+".join(["1"] * 20000)

TOO_DEEP = {
    "parentheses": "{{ " + "(" * 10000 + "1" + ")" * 10000 + " }}",
    "lists": "{{ " + "[" * 10000 + "]" * 10000 + " }}",
    "dicts": "{{ " + "{1:" * 10000 + "1" + "}" * 10000 + " }}",
    "ifs": "{% if true %}" * 10000 + "{% endif %}" * 10000,
    "fors": "{% for x in [1] %}" * 10000 + "{% endfor %}" * 10000,
    "macros": "{% macro f() %}" * 10000 + "{% endmacro %}" * 10000,
    "inline ifs": "{{ " + "1 if 0 else " * 10000 + "2 }}",
    "attributes": "{{ a" + ".b" * 10000 + " }}",
    "subscripts": "{{ a" + "[0]" * 10000 + " }}",
    "filters": "{{ 1" + "|string" * 10000 + " }}",
    "calls": "{{ f" + "()" * 10000 + " }}",
    "arguments": "{{ " + "f(" * 10000 + ")" * 10000 + " }}",
    "targets": "{% set " + "(" * 10000 + "a" + ")" * 10000 + " = 1 %}",
}
BROKEN_LIMITS = [
    ("range limit", "{{ range(10 ** 9)|list }}"),
    ("range limit", "{% for i in range(10 ** 30) %}{% endfor %}"),
    ("work limit", "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}"),
    ("work limit", "{% for i in range(9999) %}{% for j in range(9999) if 0 %}{% endfor %}"
     "{% endfor %}"),
    ("work limit", "{{ range(100000)|map('string')|map('upper')|list|length }}" * 50),
    ("work limit", "{% for i in range(9999) %}{{ " + "+".join(["1"] * 20000) + " }}{% endfor %}"),
    ("work limit", "{% for i in range(999) %}{% set x = range(99999)|sort %}{% endfor %}"),
    ("work limit", "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}"
     "{% set ns.l = ns.l + ['a' * 1000000] %}{% endfor %}"),
    ("work limit", LONG + "{{ x.strip(x) }}"),
    ("work limit", LONG + "{{ x.rfind('b' + x[:2000000]) }}"),
    ("work limit", LONG + "{% set y = x + 'b' %}{% for i in range(9999) %}{{ y in [x, x] }}"
     "{% endfor %}"),
    ("work limit", LISTS + "{{ ns.x }}"),
    ("work limit", LISTS + "{{ ns.x|tojson }}"),
    ("work limit", LISTS + "{{ ns.x == [ns.x, 1] }}"),
    ("work limit", LISTS + "{{ [ns.x, ns.x]|sort }}"),
    ("work limit", LISTS + "{{ '%s' % ns.x }}"),
    ("work limit", TUPLES + "{{ {ns.x: 1} }}"),
    ("work limit", TUPLES + "{{ {}[ns.x] }}"),
    ("work limit", TUPLES + "{{ {}.get(ns.x) }}"),
    ("work limit", TUPLES + "{{ [ns.x]|unique|list }}"),
    ("value depth limit", "{% set ns = namespace(x=[]) %}{% for i in range(200) %}"
     "{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}"),
    ("text limit", "{{ 'a' * 10 ** 9 }}"),
    ("text limit", DOUBLED.replace("SEED", "'ab'").replace("PAIR", "ns.x + ns.x")),
    ("text limit", DOUBLED.replace("SEED", "'ab'").replace("PAIR", "ns.x ~ ns.x")),
    ("text limit", "{{ ('a' * 1000000)|replace('', 'b' * 1000000) }}"),
    ("text limit", "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}"),
    ("text limit", "{{ ('b' * 1000000).join(range(1000)|map('string')) }}"),
    ("text limit", "{{ ('%(a)s' * 1000) % {'a': 'x' * 100000} }}"),
    ("text limit", "{{ ([1] * 1000)|tojson(separators=('a' * 100000, '')) }}"),
    ("text limit", "{{ strftime_now('%Y' * 100000) }}"),
    ("output limit", "{% set x = 'a' * 1000000 %}{% for i in range(99999) %}{{ x }}{% endfor %}"),
    ("item limit", "{{ [1] * 10 ** 9 }}"),
    ("item limit", "{{ ('a ' * 4000000).split()|length }}"),
    ("item limit", "{{ ('\\n' * 4000000).splitlines()|length }}"),
    ("item limit", "{{ ('a' * 4000000)|list|length }}"),
    ("integer limit", "{{ (10 ** 1000) ** 1000 }}"),
    ("integer limit", "{{ 2 ** (10 ** 9) }}"),
    ("integer limit", DOUBLED.replace("SEED", "3").replace("PAIR", "ns.x * ns.x")),
    ("integer limit", "{{ ('f' * 1000000)|int(base=16) }}"),
    ("padding limit", "{{ '%1000000000d' % 1 }}"),
    ("padding limit", "{{ '%.1000000000f' % 1 }}"),
    ("padding limit", "{{ 'a'.ljust(10 ** 9) }}"),
    ("padding limit", "{{ 'a'.zfill(10 ** 9) }}"),
    ("padding limit", "{{ '\\t'.expandtabs(10 ** 9) }}"),
    ("padding limit", "{{ 'a\\nb'|indent(10 ** 9) }}"),
    ("padding limit", "{{ [1]|tojson(indent=10 ** 9) }}"),
    ("not allowed", "{{ '%*d' % (1000000000, 1) }}"),
    ("not allowed", "{{ '%((x))1000000000d' % {'(x)': 1} }}"),
    ("more than a plain name", "{{ '{:1000000000}'.format(1) }}"),
    ("more than a plain name", "{{ '{:{}}'.format(1, 1000000000) }}"),
    ("call limit", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
    ("call limit", "{% macro f(n) %}{% for i in [1] %}{% if n %}{{ f(n)|upper }}{% endif %}"
     "{% endfor %}{% endmacro %}{{ f(1) }}"),
    ("precision", "{{ 1.5|round(10 ** 9, 'ceil') }}"),
    ("never closed", "{% " * 80000),
    ("number of more than", "{{ " + "9" * 100000 + " }}"),
    ("source limit", "x" * 300000),
]  # fmt: skip
# What Python does in one call, or one statement repeats, is charged for what it takes.
UNDERCHARGED = [
    ("work limit", FOREVER.replace("BODY", "{{ 1.5 in range(99999) }}")),
    ("work limit", NUMBERED + FOREVER.replace("BODY", "{{ -1 in d.values() }}")),
    ("work limit", LONG + "{% set y = x[1:] ~ 'a' %}{% set d = {x: 1} %}"
     + FOREVER.replace("BODY", "{{ y in d }}")),
    ("work limit", KEYS + FOREVER.replace("BODY", "{{ keys|unique|list|length }}")),
    ("work limit", PAIRS + FOREVER.replace("BODY", "{{ dict(pairs)|length }}")),
    ("work limit", PAIRS + "{% set d = dict(pairs) %}"
     + FOREVER.replace("BODY", "{{ d.get(pairs[8498][0]) }}")),
    ("work limit", FOREVER.replace(
        "BODY", "{{ {" + ",".join(f"{key}:1" for key in COLLIDING) + "} }}"
    )),
    ("work limit", LONG + FOREVER.replace("BODY", "{{ x|float }}")),
    ("work limit", "{% set t = ('b',) * 500000 %}"
     + FOREVER.replace("BODY", "{{ 'a'.startswith(t) }}")),
    ("work limit", LONG + "{% set t = (x[1:] ~ 'b',) * 9999 %}{{ x.endswith(t) }}"),
    ("work limit", FOREVER.replace("BODY", "{{ strftime_now('%2000000d' ~ ' ' * 9000)|length }}")),
    ("work limit", "{% for i in range(99999) if " + TERMS + " %}{% endfor %}"),
    ("work limit", "{% macro f(n=" + TERMS + ") %}{% endmacro %}"
     + FOREVER.replace("BODY", "{{ f() }}")),
    ("work limit", "{% set a = namespace(k=range(99999)|list) %}"
     "{% set b = namespace(k=range(99999)|list) %}{{ ([a, b] * 9999)|sort(attribute='k') }}"),
    ("work limit", NAMED + FOREVER.replace("BODY", "{% set x = dict(**d) %}")),
    ("work limit", "{% set x = '{0}' * 1000000 %}" + FOREVER.replace("BODY", "{{ x.format('') }}")),
    ("work limit", FOREVER.replace("BODY", "{% set x = (10 ** 1000)|string %}")),
    ("work limit", "{{ ([10 ** 1000] * 99999)|string }}"),
    ("work limit", "{% set x = 'a'.ljust(-1000000000000) %}"
     + FOREVER.replace("BODY", "")),
    ("work limit", "{% set x = ('\\t' * 9999).expandtabs(-1000000000) %}"
     + FOREVER.replace("BODY", "")),
    ("no such attribute", TUPLES + "{{ ({}|attr(ns.x)).y }}"),
    ("no such attribute", TUPLES + "{{ (''|attr(ns.x)).y }}"),
    ("range limit", "{{ range(0, 230584300921369395100000, 2305843009213693951)|unique|list }}"),
    ("path limit", "{{ ['a']|map(attribute='0.' * 1000000 ~ '0')|list }}"),
    ("path limit", "{{ ['a']|sort(attribute='a,' * 1000000) }}"),
    ("padding limit", "{{ '%.000000000900000000d' % 1 }}"),
    ("name of more than", FOREVER.replace("BODY", "{{ " + "a" * 200000 + " is defined }}")),
    ("not integer keys", "{{ namespace({1: 2}) }}"),
]  # fmt: skip
ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ messages.__class__.__mro__ }}",
    "{{ messages[0].__class__.__base__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ namespace.__init__.x }}",
    "{{ raise_exception.__code__.co_code }}",
    "{{ ''.join.__self__.x }}",
    "{{ (''|attr('__class__')).x }}",
    "{{ ['']|map(attribute='__class__.__mro__')|list }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{0[a]}'.format({'a': 1}) }}",
    "{{ messages.append({}) }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{{ self.__init__.x }}",
    "{{ (messages|map('upper')).gi_frame.x }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{% set messages.x = 1 %}",
    "{% macro f() %}{% endmacro %}{{ f._scope.x }}",
    "{% for x in [1] %}{{ loop._items.x }}{% endfor %}",
]


def failure(source, max_seconds=MAX_SECONDS):
    """The TemplateError of parsing and rendering `source`, within so much work."""
    start = time.thread_time()
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source).render({"messages": [{"role": "user"}]})
    assert time.thread_time() - start < max_seconds
    return caught.value.message


@pytest.fixture
def less_work(monkeypatch):
    monkeypatch.setattr(limits, "MAX_WORK", MAX_WORK // LESS)


@pytest.mark.parametrize("what", TOO_DEEP)
def test_deep_nesting_is_refused_when_parsing(what):
    start = time.thread_time()
    with pytest.raises(TemplateError, match="nesting limit|call limit|source limit"):
        ChatTemplate(TOO_DEEP[what])
    assert time.thread_time() - start < MAX_SECONDS


@pytest.mark.parametrize(("limit", "source"), BROKEN_LIMITS, ids=lambda text: text[:60])
def test_a_broken_limit_is_named(limit, source, less_work):
    assert limit in failure(source, MAX_SECONDS / LESS)


def test_the_whole_budget_is_used_up_in_time():
    assert "work limit" in failure(FOREVER.replace("BODY", "{{ 'a' ~ i }}"))


@pytest.mark.parametrize(("limit", "source"), UNDERCHARGED, ids=lambda text: text[-60:])
def test_what_python_does_at_once_ends_at_a_limit_too(limit, source, less_work):
    assert limit in failure(source, MAX_SECONDS / LESS)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ([10 ** 1000] * 20000)|string }}",
        "{{ ([10 ** 1000] * 20000)|tojson }}",
        "{{ '%s' % [[10 ** 1000] * 20000] }}",
        "{{ ('%(a)f' * 100000) % {'a': 1e308} }}",
    ],
)
def test_a_text_that_is_too_long_is_not_made_first(source):
    tracemalloc.start()
    message = failure(source)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "text limit" in message
    assert peak < 15_000_000


def test_leading_zeros_make_no_width():
    source = "{{ '%.000000000003d|%000000000000000005d|%.0f' % (1, 2, 3.4) }}"
    assert ChatTemplate(source).render({}) == "001|00002|3"


@pytest.mark.parametrize("source", ESCAPES)
def test_no_python_attribute_can_be_reached(source):
    assert failure(source)


def test_a_repeated_sign_or_term_costs_no_depth():
    assert ChatTemplate("{{ " + "not " * 9999 + "1 }}").render({}) == "False"
    assert ChatTemplate("{{ " + "-" * 9999 + "1 }}").render({}) == "-1"
    assert ChatTemplate("{{ " + "+".join(["1"] * 9999) + " }}").render({}) == "9999"
    elifs = "{% if 0 %}" + "{% elif 0 %}" * 9999 + "{% else %}x{% endif %}"
    assert ChatTemplate(elifs).render({}) == "x"


def test_a_call_stack_used_up_below_the_call_limit_is_a_template_error_too():
    opening, closing = "{% if n %}{% for i in n %}" * 20, "{% endfor %}{% endif %}" * 20
    source = "{% macro f(n) %}" + opening + "{{ f(n) }}" + closing + "{% endmacro %}{{ f([1]) }}"
    assert "nested too deeply" in failure(source)


def test_variables_nested_without_end_are_refused():
    endless = []
    endless.append(endless)
    with pytest.raises(TemplateError, match="'messages' is nested more than 100 deep"):
        ChatTemplate("x").render({"messages": endless})


def test_every_render_has_a_budget_of_its_own():
    template = ChatTemplate("{% set x = 'a' * 7000000 %}" * 6 + "done")
    assert [template.render({}) for _ in range(4)] == ["done"] * 4


def test_a_budget_counts_down_to_exactly_nothing():
    budget = Budget()
    budget.spend(MAX_WORK)
    assert budget.work_left == 0
    with pytest.raises(Exception, match="work limit"):
        budget.spend(1)


def test_a_render_ends_by_the_clock_however_little_work_was_counted():
    now = 5.0
    budget = Budget(clock=lambda: now)
    budget.spend(1)
    now += MAX_RENDER_SECONDS
    budget.spend(WORK_PER_LOOK + 1)
    now += 0.1
    with pytest.raises(Fault, match="time limit: more than 20 seconds"):
        budget.spend(WORK_PER_LOOK + 1)


def test_no_source_of_the_interpreter_says_eval_getattr_or_open():
    forbidden = {"eval", "exec", "compile", "getattr", "setattr", "hasattr", "vars", "globals"}
    forbidden |= {"__import__", "importlib", "pickle", "open", "dir", "delattr"}
    folder = Path(chat_template.__file__).parent
    paths = [Path(chat_template.__file__), *folder.glob("template/*.py")]
    assert len(paths) > 10
    for path in paths:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        named = {node.id for node in nodes if isinstance(node, ast.Name)}
        assert not named & forbidden, path.name


GROWING = (
    "{% set ns = namespace(out='') %}{% for m in messages %}"
    "{% set ns.out = ns.out ~ '<' ~ m.role ~ '>' OP m.content ~ '</s>' %}{% endfor %}{{ ns.out }}"
)


@pytest.mark.parametrize("operator", ["~", "+"])
def test_a_text_that_grows_in_a_variable_pays_once_for_each_piece(operator):
    messages = [{"role": "user", "content": "x" * 200}] * 20_000
    template = ChatTemplate(GROWING.replace("OP", operator))
    assert template.render({"messages": messages}) == ("<user>" + "x" * 200 + "</s>") * 20_000


KEPT = (
    "{% set ns = namespace(all=[], out='x' * 4000) %}{% for i in range(99999) %}"
    "{% set ns.out = ns.out ~ 'y' %}{% set ns.all = ns.all + [KEEP] %}{% endfor %}"
)


@pytest.mark.parametrize("kept", ["ns.out", "ns.out ~ 'z'", "(ns.out ~ 'z')|upper"])
def test_versions_of_a_growing_text_that_are_kept_are_paid_for_each(kept):
    tracemalloc.start()
    try:
        assert "work limit" in failure(KEPT.replace("KEEP", kept))
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


NESTING, STEPS = "nesting limit: brackets or blocks more than 64", "nesting limit: more than 64 ca"
DIGITS = "integer limit: a number of more than 1024 characters"
SOURCES = [
    (lambda n: "x" * n, 262_144, "source limit: the template has more than 262144 characters"),
    (lambda n: "{{ " + "(" * n + "1" + ")" * n + " }}", 31, NESTING),
    (lambda n: "{{ " + "[" * n + "]" * n + " }}", 63, NESTING),
    (lambda n: "{% if 1 %}" * n + "{% endif %}" * n, 63, NESTING),
    (lambda n: "{{ a" + ".b" * n + " }}", 64, STEPS),
    (lambda n: "{{ 1" + "|string" * n + " }}", 64, STEPS),
    (lambda n: "{{ " + "a" * n + " }}", 256, "name of more than 256 characters"),
    (lambda n: "{{ " + "1" * n + " }}", 1024, DIGITS),
    (lambda n: "{{ 1." + "1" * (n - 2) + " }}", 1024, DIGITS),
]


@pytest.mark.parametrize(("source", "most", "message"), SOURCES)
def test_the_most_that_a_source_may_hold_parses_and_one_more_is_refused(source, most, message):
    ChatTemplate(source(most))
    with pytest.raises(TemplateError, match=message):
        ChatTemplate(source(most + 1))
