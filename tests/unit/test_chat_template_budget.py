"""What a template's work costs, in units, and each limit exactly at its bound and one beyond."""

from datetime import datetime

import pytest

from marlin.errors import TemplateError
from marlin.text.chat_template import ChatTemplate
from marlin.text.template import limits
from marlin.text.template.expressions import ExpressionParser
from marlin.text.template.globals import make_globals
from marlin.text.template.lexer import tokenize
from marlin.text.template.limits import Budget, Fault, levels
from marlin.text.template.statements import parse
from marlin.text.template.values import Growing, Scope, check_variables

VARIABLES = {
    "T": "a" * 8000,  # 1000 units of text
    "B": "b" * 8000,
    "TABS": "\t" * 1000,
    "LINES": "a\n" * 4000,
    "L": [0] * 1000,
    "P": tuple([0] * 1000),
    "W": ["ab"] * 1000,
    "D": {f"k{i}": i for i in range(800)},
    "PEOPLE": [{"name": "x", "at": {"n": 1}}] * 1000,
    "PAIRS": [[f"k{i}", i] for i in range(1000)],
    "big": 2**640,
    "long": 2**4095,
    "longest": 2**8191,
    "K64": "k" * 64,
    "K65": "k" * 65,
    "K800": "k" * 800,
}
# What an expression costs beyond its tokens, which its statement pays for.
COSTS = [
    # Text made: 8 characters a unit.
    ("T + T", 2000),
    ("T ~ T ~ T", 3000),
    ("T ~ 5", 1 + 1000),
    ("T * 3", 3000),
    ("3 * T", 3000),
    ("T * -3", 0),
    ("T|e", 6000),
    ("(T|safe)|e", 0),
    ("(T|safe) + T", 6000 + 2000),
    ("T + (T|safe)", 6000 + 2000),
    # Values copied from list to list: 2 a unit; made anew: 1.
    ("L + L", 1000),
    ("P + P", 1000),
    ("L * 3", 1500),
    ("L * -3", 0),
    ("L|list", 1000),
    ("L.copy()", 1000),
    ("D.copy()", 800),
    ("L|reverse|list", 2000),
    ("T|reverse", 1000),
    ("T[:4000]", 500),
    ("L[:500]", 250),
    ("range(8000)", 1000),
    ("range(8000)[:4000]", 1000),
    # Numbers: 64 bits a unit, of what a power or product may have and of what it has.
    ("2 ** 1000", 2000 // 64 + 1001 // 64),
    ("big * big", 1282 // 64 + 1281 // 64),
    ("big + big", 642 // 64),
    ("big - 1", 640 // 64),
    # Text read and compared.
    ("T == T", 1000),
    ("T == 'a'", 0),
    ("T < B", 1000),
    ("L == L", 2 * 2001),
    ("L == 5", 0),
    ("'b' in T", 1000),
    ("5 in L", 125),
    ("'xx' in L", 375),
    ("5 in P", 125),
    ("5 in range(8000)", 2000),
    ("5 in D.values()", 100),
    ("[5] in L", 1 + 1 + 1 + 2001),
    ("5 in D", 100),
    ("5 in D.keys()", 100),
    ("'k1' in D", 0),
    ("K64 in D", 0),
    ("K65 in D", 8),
    ("K800 in D", 100),
    ("(1, 2) in L", (1 + 2 + 2) + 2001),
    ("D[5]", 100 + 1),
    ("D['k1']", 0),
    ("D[K65]", 8),
    ("D[(1, 2)]", 5 + 100),
    ("D.get(5)", 100),
    ("D.get('k1')", 0),
    ("D.k1", 0),
    ("{5: 1, 6: 2}", 0),
    ("L.count(5)", 125),
    ("P.index(0)", 125),
    # Methods of text.
    ("T.upper()", 1000),
    ("T.find('ab')", 1000 + 125),
    ("T.count('b' * 64)", 1000 + 8 + 4000),
    ("T.startswith(('a', 'b'))", 5 + 1000),
    ("T.ljust(9999)", 1249),
    ("T.ljust(5)", 1000),
    ("'1'.zfill(8000)", 1000),
    ("T.split()", 1000 + 1),
    ("T.split('a')", 1000 + 62 + 8001),
    ("T.split('a', 9)", 1000 + 62 + 10),
    ("T.rsplit('a', 9)", 1000 + 62 + 10),
    ("LINES.splitlines()", 4000 + 10000),
    ("T.replace('a', 'bb')", 1000 + 2000),
    ("T.replace('a', '')", 1000 + 1000),
    ("T.replace('a', 'bb', 80)", 1000 + 1010),
    ("T.replace('a', 'bbb', 80)", 1000 + 1020),
    ("TABS.expandtabs(8)", 1125),
    ("TABS.expandtabs()", 1125),
    ("TABS.expandtabs(-5)", 125),
    ("'-'.join(W)", 1000 + 375),
    ("'-' * 8 in '-'.join(W)", 1 + 1000 + 375 + 374),
    # Formats.
    ("'%s' % T", 1001 + 8003 // 8),
    ("'%s%%' % T", 1001 + 16006 // 8),
    ("'%d' % 7", 1 + (2 + 320 + 2) // 8),
    ("'%8000d' % 7", 1 + (6 + 8000 + 320 + 2) // 8),
    ("'%.800s' % 7", 1 + (6 + 800 + 2) // 8),
    ("'%f%f' % (1.5, 2.5)", 1 + 2 + 2 + (4 + 640 + 2 * (0 + 3)) // 8),
    ("'{}'.format(T)", 8 + 1000),
    ("'{}{}'.format(T, T)", 16 + 1000 + 2000),
    ("'a{0}b'.format(5)", 16 + 1),
    ("T.format()", 1000 + 8),
    ("T|tojson", 1001 + 1000),
    ("L|tojson", 2001 + 3000 // 8),
    # Filters.
    ("T|upper", 1000),
    ("T|trim('b')", 1000 + 62),
    ("T|title", 8000),
    ("T|replace('a', 'bb')", 1000 + 2000),
    ("T|indent", 1 + 10001 + 1000),
    ("LINES|indent(3)", 4001 + 10001 + (8000 + 4001 * 4) // 8),
    ("LINES|indent('---')", 4001 + 10001 + (8000 + 4001 * 4) // 8),
    ("T|length", 0),
    ("L|first", 0),
    ("T|float", 1001),
    ("big|abs", 1 + 10 + 26),
    ("L|join", 2 * 1000 + 1000 + 125),
    ("W|join(', ')", 2 * 1000 + 500),
    ("W|map('upper')|list", 6000 + 1000),
    ("PEOPLE|map(attribute='name')|list", 6000 + 1000 + 1000),
    ("PEOPLE|map(attribute='at.n')|list", 6000 + 2000 + 1000),
    ("L|select('odd')|list", 6000),
    ("L|reject('odd')|list", 6000 + 1000),
    ("PEOPLE|selectattr('name')|list", 6000 + 1000 + 1000),
    ("L|sort", 1000 + 3000 + 1000),
    ("L|min", 5000),
    ("W|unique|list", 6000 + 3000 + 1000 + 1),
    ("L|sum", 6000),
    ("PEOPLE|sum(attribute='at.n')", 6000 + 2000),
    ("PEOPLE|sort(attribute='name,name')|length", 1000 + 2 * 5000),
    ("D|dictsort|length", 800 + 800 * (3 + 1 + 1)),
    ("D|items|list", 800),
    ("T is upper", 1000),
    ("T is lower", 1000),
    ("T is eq T", 1000),
    ("'b' is in T", 1000),
    # Functions.
    ("dict(PAIRS)", 1000 + 2000),
    ("dict(D)", 800 + 1600),
    ("namespace(D)", 800 + 1600),
    ("dict(**D)", 800),
    ("dict(*[PAIRS])", 1 + 3000),
    ("strftime_now(' ' * 80)", 10 + 256 * 10),
]


def scope_of(budget, **variables):
    names = make_globals(lambda: datetime(2026, 1, 2))
    return Scope(names, None, budget).child({**VARIABLES, **variables})


def evaluated(expression, **variables):
    """(value, units that it cost)."""
    parser = ExpressionParser(tokenize("{{" + expression + "}}"))
    parser.advance()
    node = parser.tuple_or_expression()
    assert parser.token.kind == "end_print"
    budget = Budget()
    value = node(scope_of(budget, **variables))
    return value, limits.MAX_WORK - budget.work_left


def spent(source, **variables):
    """Units that a whole template costs."""
    budget = Budget()
    scope_of(budget, **variables).written(parse(source))
    return limits.MAX_WORK - budget.work_left


@pytest.mark.parametrize(("expression", "units"), COSTS)
def test_an_expression_costs_what_it_makes_reads_and_compares(expression, units):
    assert evaluated(expression)[1] == units


# The tokens of a body, the two marks of its tags among them, are paid for each time it runs, with
# 4 units more for the scope that it makes.
STATEMENTS = [
    ("", 4),
    ("{{ 1 }}", 4 + 3 + 1),
    ("abc", 4 + 1),
    ("{% for i in [] %}{% endfor %}", 4 + 9),
    ("{% for i in [1, 2, 3] %}{% endfor %}", 4 + 14 + 3 * (4 + 1)),
    ("{% for i in [1, 2] if i %}{% endfor %}", 4 + 14 + 2 * (4 + 1) + 2 * (4 + 1)),
    ("{% if 1 %}{% else %}abc{% endif %}", 4 + 8 + (4 + 1)),
    ("{% if 0 %}{% else %}abc{% endif %}", 4 + 8 + (4 + 2)),
    ("{% macro f(a=1) %}{% endmacro %}{{ f() }}{{ f() }}", 4 + 21 + 2 * (4 + 1 + 1)),
    ("{% set x %}{% endset %}", 4 + 6 + (4 + 1)),
    ("{{ T }}", 4 + 3 + 1000),
    ("{% filter upper %}{{ T }}{% endfilter %}", 4 + 6 + (4 + 3 + 1) + 1000 + 1000 + 1000),
    ("{% macro f() %}{{ T }}{% endmacro %}{{ f() }}", 4 + 13 + (4 + 4) + 1000 + 1000),
    # One more piece of a growing text is paid once, and all of it where it is read.
    ("{% set x = T %}{% set x = x ~ T %}{% set x = x ~ T %}{% set x = x ~ T %}", 4 + 30 + 4000),
    (
        "{% set x = T %}{% set x = x ~ T %}{% set x = x ~ T %}{{ x|length }}{{ x|length }}",
        4 + 32 + 2000 + 1000 + 3000 + 2 + 1,
    ),
]


def test_a_dict_of_numbers_pays_for_what_may_collide():
    pairs = ", ".join(f"{i}: 1" for i in range(24))
    assert evaluated("{" + pairs + "}")[1] == 8 * 0 + 8 * 1 + 8 * 2


BOUNDS = [
    # (an expression with N, the most of it, the limit, what it says)
    ("('a' * N)|length", 8_000_000, "text limit: a string of more than 8000000 characters"),
    ("('a' * 4000000 + 'b' * (N - 4000000))|length", 8_000_000, "text limit"),
    ("('a' * 4000000 ~ 'b' * (N - 4000000))|length", 8_000_000, "text limit"),
    ("('a' * 4000000).replace('a', 'bbb', N)|length", 2_000_000, "text limit"),
    ("('a' * N).join(['b' * 1000000, 'c'])|length", 3_499_999, "text limit"),
    ("([0] * N)|length", 500_000, "item limit: a list of more than 500000 items"),
    ("([0] * 250000 + [0] * (N - 250000))|length", 500_000, "item limit"),
    ("('a' * N)|list|length", 500_000, "item limit"),
    ("('a' * N)|title|length", 500_000, "item limit"),
    ("('a ' * N).split()|length", 500_000, "item limit"),
    ("('\\n' * N).splitlines()|length", 500_000, "item limit"),
    ("2 ** N > 1", 4096, "integer limit: an integer of more than 8192 bits"),
    ("long * 2 ** N > 1", 4095, "integer limit"),
    ("(longest + (longest - 1)) + N > 1", 0, "integer limit"),
    ("('1' * N)|int > 1", 1024, "integer limit: a number of more than 1024 characters"),
    ("range(N)|length", 100_000, "range limit: a range of more than 100000 numbers"),
    ("range(2 ** N, 0)|length", 63, "range limit: a bound of more than 64 bits"),
    ("'a'.ljust(N)|length", 9999, "padding limit: a width of more than 9999 characters"),
    ("'a'.rjust(N)|length", 9999, "padding limit"),
    ("'a'.zfill(N)|length", 9999, "padding limit"),
    ("'a\\tb'.expandtabs(N)|length", 9999, "padding limit"),
    ("'a'|indent(N)", 9999, "padding limit"),
    ("'a'|indent(' ' * N)", 9999, "padding limit"),
    ("[1]|tojson(indent=N)|length", 9999, "padding limit"),
    ("[1]|tojson(indent=' ' * N)|length", 9999, "padding limit"),
    ("('%' ~ N ~ 'd') % 1", 9999, "padding limit"),
    ("('%.' ~ N ~ 'd') % 1", 9999, "padding limit"),
    ("['a']|map(attribute='0.' * ((N - 1) // 2) ~ 'a' * ((N - 1) % 2 + 1))|list", 1024,
     "path limit: an attribute path of more than 1024 characters"),
    ("['a']|sort(attribute='a' * N)|length", 1024, "path limit"),
    ("1.5|round(N)", 308, "round takes a precision of at most 308"),
    ("1.5|round(-N)", 308, "round takes a precision of at most 308"),
]  # fmt: skip


@pytest.mark.parametrize(("expression", "most", "message"), BOUNDS)
def test_the_most_is_taken_and_one_more_is_refused_by_the_limits_name(expression, most, message):
    evaluated(expression, N=most)
    with pytest.raises(Fault, match=message):
        evaluated(expression, N=most + 1)


@pytest.mark.parametrize(("source", "units"), STATEMENTS)
def test_a_statement_costs_its_tokens_and_the_scopes_that_it_makes(source, units):
    assert spent(source) == units


def test_all_work_of_a_render_is_10_million_units_and_its_text_8_million_characters():
    budget = Budget()
    budget.spend(10_000_000)
    with pytest.raises(Fault, match="^work limit: more than 10000000 steps in one render$"):
        budget.spend(1)
    budget.write("a" * 8_000_000)
    with pytest.raises(Fault, match="^output limit: more than 8000000 characters written$"):
        budget.write("a")


def test_macro_calls_go_50_deep():
    budget = Budget()
    for _ in range(50):
        budget.enter_call()
    with pytest.raises(Fault, match="^call limit: more than 50 macro calls inside one another$"):
        budget.enter_call()
    source = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{% else %}end{% endif %}{% endmacro %}"
    assert ChatTemplate(source + "{{ f(49) }}").render({}) == "end"
    # A call that has ended is none of them.
    assert ChatTemplate(source + "{{ f(49) ~ f(49) }}").render({}) == "endend"
    with pytest.raises(TemplateError, match="call limit"):
        ChatTemplate(source + "{{ f(50) }}").render({})


def test_the_clock_is_looked_at_every_thousand_units_and_stops_a_render_after_20_seconds():
    looks, now = [], 100.0

    def clock():
        looks.append(now)
        return now

    budget = Budget(clock)
    budget.spend(1)
    assert len(looks) == 2  # one at its start, and one before anything is done
    budget.spend(1000)
    assert len(looks) == 2
    budget.spend(1)
    assert len(looks) == 3
    now = 120.0
    budget.spend(1001)
    now = 120.1
    with pytest.raises(Fault, match="^time limit: more than 20 seconds of one render$"):
        budget.spend(1001)


def nested(depth, wrap=lambda value: [value]):
    value = 1
    for _ in range(depth - 1):
        value = wrap(value)
    return value


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: (v,), lambda v: {"a": v}])
def test_values_go_100_deep(wrap):
    assert Budget().weigh(nested(100, wrap))[1] == 100
    with pytest.raises(Fault, match="^value depth limit: lists more than 100 deep$"):
        Budget().weigh(nested(101, wrap))
    if wrap(1) != (1,):
        check_variables({"a": nested(100, wrap)})
        with pytest.raises(TemplateError, match="'a' is nested more than 100 deep"):
            check_variables({"a": nested(101, wrap)})


@pytest.mark.parametrize(
    ("value", "weight"),
    [
        ("abc", (1, 1, 3)),
        ("", (1, 1, 0)),
        (7, (1, 1, 1)),
        (2**30, (1, 1, 10)),
        (1.5, (1, 1, 0)),
        ([], (1, 1, 0)),
        (["ab", ["c"], 1.0], (5, 3, 3)),
        ({"ab": "c", "d": ["ef"]}, (6, 3, 6)),
        ({"ab": 1}.keys(), (2, 2, 2)),
        ({"ab": "cde"}.values(), (2, 2, 3)),
        ({"ab": "cde"}.items(), (4, 3, 5)),
    ],
)
def test_a_value_weighs_the_values_levels_and_characters_that_it_holds(value, weight):
    assert Budget().weigh(value) == weight


def test_a_value_that_is_shared_is_weighed_wherever_it_stands():
    part = ["x"]
    assert [level for _, level in levels([part, part])] == [
        [[part, part]], [part, part], ["x", "x"],
    ]  # fmt: skip


def test_printing_more_than_a_text_may_hold_is_refused_before():
    budget = Budget()
    assert budget.printed(["a" * 8_000_000])[2] == 8_000_000
    with pytest.raises(Fault, match="text limit"):
        Budget().printed(["a" * 8_000_001])


def test_a_growing_text_ends_at_the_limit_of_texts():
    budget, growing = Budget(), Growing("a" * 4_000_000)
    growing.add(budget, "b" * 4_000_000)
    assert growing.num_chars == 8_000_000
    with pytest.raises(Fault, match="text limit"):
        growing.add(budget, "c")
    assert growing.text(budget)[3_999_999:4_000_001] == "ab"
    assert growing.num_chars == len(growing.text(budget)) == 8_000_000


@pytest.mark.parametrize("limit", ["TEXT", "ITEMS", "REFERENCES", "INTEGER", "RANGE"])
def test_less_than_nothing_is_taken_for_nothing(limit):
    budget = Budget()
    budget.take(getattr(limits, limit), -1000)
    assert budget.work_left == limits.MAX_WORK
