"""Regular expressions and EBNF as automata, beside Python's own `re`."""

import json
import random
import re

import pytest
from json_texts import Taker, byte_vocabulary

from marlin.errors import DeviceError, RequestError
from marlin.text.grammar.constraint import (
    AnyText,
    Ebnf,
    Either,
    InOrder,
    JsonSchema,
    Regex,
    Repeated,
    SpecialToken,
    Text,
    Until,
    compile_grammar,
    thought,
)

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def vocabulary():
    return byte_vocabulary()


EXPRESSIONS = [
    *("a", "", "abc|abd|x", "a*b+c?", "(ab|a)(bc|c)?", "a{2,4}", "a{3}", "a{2,}", "(a?){3}b"),
    *("[a-c]+", "[^a-c]", r"[\]a]", r"[a\-c]", r"\d{2}-\d", r"\w+\s\w", ".", ".a.", r"\."),
    *("^a$", "^ab|cd$", "(^a|b)c", "a(b|c$)", "(?:ab)+?c", "(?P<n>a)b", r"\x61\u0062", "[\\d-]+"),
    *("ä+", "[à-ü]b", "[^ä]c", "(a|ab)(c|bcd)(d*)", "((a{1,3}b){2}c){1,2}", "x*", "[ab]{0,2}c{1,}"),
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_takes_what_python_matches_as_a_whole(vocabulary, expression):
    chooser = random.Random(expression)
    taker = Taker(Regex(expression), vocabulary)
    texts = [
        "".join(chooser.choices("aabbccdx-. 01]äü", k=chooser.randint(0, 8))) for _ in range(300)
    ]
    texts += ["", "a", "ab", "abab" * 3, "aab", "abc", "aaab", "abaabc", "12-3", "a b", "ab12"]
    for text in texts:
        assert taker.takes(text) == bool(re.fullmatch(expression, text, re.ASCII)), text


@pytest.mark.parametrize(
    ("expression", "means"),
    [(r"[\w-.]", r"[\w\-.]"), (r"[+-\d]", r"[+\-\d]"), (r"[\d-\s]", r"[\d\-\s]")],
)
def test_a_hyphen_beside_a_class_stands_for_itself(vocabulary, expression, means):
    """Python refuses it; ECMA-262 does not."""
    taker = Taker(Regex(expression), vocabulary)
    for char in map(chr, range(1, 128)):
        assert taker.takes(char) == bool(re.fullmatch(means, char, re.ASCII)), char


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_pattern_is_searched_for_in_a_string(vocabulary, expression):
    chooser = random.Random(expression)
    taker = Taker(JsonSchema({"type": "string", "pattern": expression}), vocabulary)
    for _ in range(300):
        text = "".join(chooser.choices('aabbcdx-. 01"\\\näü', k=chooser.randint(0, 7)))
        found = re.search(expression, text, re.ASCII) is not None
        assert taker.takes(json.dumps(text, ensure_ascii=False)) == found, text


@pytest.mark.parametrize(
    ("expression", "what"),
    [
        *((r"a(?=b)", "look-around"), (r"(?<!a)b", "look-around"), (r"(a)\1", "back-reference")),
        *(
            (r"\bword", "word boundary"),
            ("a**+", "possessive"),
            ("a)", "without its"),
            ("(a", "')'"),
        ),
        *(
            ("[b-a]", "wrong way"),
            ("*a", "repeats nothing"),
            ("a{9,3}", "wrong way"),
            ("a\\", "ends"),
        ),
        *((r"\p{Greek}", "supported"), ("a^b", "anchor"), ("(a$)*", "anchor"), ("[a", "ends")),
        *(("(" * 65 + ")" * 65, "deep"), ("a" * 4097, "characters"), ("a{200000}", "times")),
    ],
)
def test_what_is_no_regular_expression_here_is_refused_by_name(expression, what):
    with pytest.raises(RequestError, match=re.escape(what)) as caught:
        compile_grammar(Regex(expression), "regex")
    assert caught.value.param == "regex"


def test_repeats_are_counted_and_not_written_out():
    grammar = compile_grammar(Regex("((a{1,1000}b){1,1000}c){1,1000}"), "regex")
    assert grammar.num_edges < 50


GBNF = """
# a list of words
root  ::= "[" word ("," " "? word){0,2} "]" | none
word  ::= [a-z]+ | "\\x41" [^a-z\\]] | "\\"" .
  | tail
tail  ::= "(" root ")"
none  ::= "none"
"""


def test_a_grammar_takes_its_texts_and_no_others(vocabulary):
    taker = Taker(Ebnf(GBNF), vocabulary)
    for text in ["none", "[a]", "[a,bc, d]", "[AB]", '["ü]', "[([x,(none)])]", "[((none))]"]:
        assert taker.takes(text) == (text != "[((none))]"), text
    for text in ["", "[]", "[a,b,c,d]", "[a,  b]", "[Aa]", "[a", "nonee", "[(x)]"]:
        assert not taker.takes(text), text


@pytest.mark.parametrize(
    ("source", "what"),
    [
        *(("word ::= 'a'", "cannot be read"), ('word ::= "a"', "no rule root"), ("root", "where")),
        *(('root ::= other "a"', "no rule 'other'|no rule \"other\""), ("root ::= (", "where")),
        *(('root ::= "a"\nroot ::= "b"', "again"), ("root ::= [b-a]", "wrong way")),
        *(('root ::= "a"{3,1}', "where"), ("root ::= " + "(" * 70 + '"a"' + ")" * 70, "deep")),
    ],
)
def test_a_wrong_grammar_is_refused_with_its_line_or_rule(source, what):
    with pytest.raises(RequestError, match=what):
        compile_grammar(Ebnf(source), "grammar")


def test_a_grammar_is_read_up_to_65536_characters_and_refused_beyond():
    longest = 'root ::= "a"'.ljust(65536)
    compile_grammar(Ebnf(longest), "grammar")
    with pytest.raises(RequestError, match="may have 65536 characters, got 65537"):
        compile_grammar(Ebnf(longest + " "), "grammar")


def test_a_rule_that_begins_with_itself_ends(vocabulary):
    taker = Taker(Ebnf('root ::= root "a" | "b"'), vocabulary)
    assert taker.takes("baa") and not taker.takes("ab")
    with pytest.raises(DeviceError, match="nothing satisfies"):
        Taker(Ebnf('root ::= root "a"'), vocabulary)


def test_parts_are_put_together(vocabulary):
    call = InOrder((Text("<f>"), JsonSchema({"type": "integer"}), SpecialToken("[end]")))
    taker = Taker(InOrder((Repeated(call, 1, 2), Either((Text("."), Text("!"))))), vocabulary)
    end = b"\xff[end]"
    for text in (b"<f>12" + end + b".", b"<f>0" + end + b"<f>-3" + end + b"!"):
        assert taker.takes(text)
    for text in (b".", b"<f>12[end].", (b"<f>1" + end) * 3 + b"!"):
        assert not taker.takes(text)


def test_any_text_ends_at_the_first_marker(vocabulary):
    taker = Taker(InOrder((Until("abac"), Text("!"))), vocabulary)
    for text in ("abac!", "ababac!", "abaabac!", "xä abacabac!", "aabacc!"):
        assert taker.takes(text) == bool(re.fullmatch(r"(?s)((?!abac).)*abac!", text)), text
    assert taker.takes("abab\xffabac".encode("latin-1") + b"!")
    assert Taker(AnyText(), vocabulary).takes("ä\n ") and not taker.takes(b"\xff!")


@pytest.mark.parametrize("is_open", [True, False])
def test_a_thought_comes_before_what_is_asked_for(vocabulary, is_open):
    part = InOrder((thought("<think>\n", "</think>", is_open), Either((Text("yes"), Text("no")))))
    taker = Taker(part, vocabulary)
    opening = "" if is_open else "<think>"
    assert taker.takes(opening + "hm < / yes</think>\n\nno")
    assert taker.takes("yes") != is_open
    assert not taker.takes(opening + "hm</think>\n\n\nno")
    assert not taker.takes(opening + "yes")
