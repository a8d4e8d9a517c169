"""Token-level rules and rewrites: words that Metal does not have, literals, casts, attributes.

What C++ spells otherwise is rewritten in place: an unsuffixed 1.0 is a float, (float4)x and
static_cast<float4>(x) convert each component, [[...]] of Metal's own go.
"""

import re

from msl.kernels import BUILTINS

SCALARS = "bool char uchar short ushort int uint long ulong half float bfloat".split()
VECTORS = {scalar + width for scalar in SCALARS for width in "234"}

NOT_IN_METAL = {
    "double": "'double' is not supported in Metal",
    "wchar_t": "'wchar_t' is not supported in Metal",
    "new": "'new' is not supported in Metal",
    "delete": "'delete' is not supported in Metal",
    "try": "exceptions are not supported in Metal",
    "throw": "exceptions are not supported in Metal",
    "goto": "'goto' is not supported in Metal",
    "virtual": "virtual functions are not supported in Metal",
    "dynamic_cast": "'dynamic_cast' is not supported in Metal",
    "typeid": "RTTI is not supported in Metal",
    "asm": "inline assembly is not supported in Metal",
    "thread_local": "'thread_local' is not supported in Metal",
}
# Attributes that C++ understands stay in the text.
CPP_ATTRIBUTES = {
    "fallthrough",
    "maybe_unused",
    "nodiscard",
    "noinline",
    "gnu::always_inline",
    "clang::always_inline",
    "clang::optnone",
}
METAL_ATTRIBUTES = {
    *BUILTINS,
    "buffer",
    "threadgroup",
    "function_constant",
    "host_name",
    "kernel",
    "max_total_threads_per_threadgroup",
    "required_threads_per_threadgroup",
    "unroll",
    "texture",
    "sampler",
    "visible",
    "stitchable",
    "id",
}
# What may stand before a cast or a lambda: an operand may not.
BEFORE_AN_OPERAND = set(
    "( , = return ? : { ; + - * / % & | ^ && || == != < > <= >= << >> += -= *= /= ! ~ [ }".split()
)
STARTS_AN_OPERAND = ("(", "-", "!", "~", "*", "&")


def check_tokens(source, type_names=frozenset()):
    """Report and rewrite, from the first token to the last. `type_names` may stand for vectors."""
    index = 0
    while index < len(source):
        token = source.tokens[index]
        if token.kind == "number":
            _number(source, token)
        elif token.kind == "name":
            if token.in_user_file:
                _check_word(source, index)
            _rewrite_construction(source, index)
        elif token.text == "[" and token.in_user_file:
            index = _bracket(source, index)
        elif token.text == "(" and source.tokens[index + 1].kind == "name":
            _rewrite_cast(source, index, type_names)
        index += 1


def _check_word(source, index):
    token, before, after = source.tokens[index], source.text(index - 1), source.text(index + 1)
    is_deleted_function = token.text == "delete" and before == "="
    if token.text in NOT_IN_METAL and not is_deleted_function:
        source.report(token, NOT_IN_METAL[token.text])
    if token.text == "std" and after == "::":
        source.report(token, "namespace std is not available in Metal; use metal::")
    if token.text == "threadgroup_barrier" and after == "(":
        if source.text(source.partner[index + 1] - 1) == "mem_none":
            message = "threadgroup_barrier(mem_none) orders no memory"
            source.report(token, f"{message}: threads may not see each other's writes", "style")


def _number(source, token):
    text = token.text
    if text[:2] in ("0x", "0X") or not re.search(r"[.eE]|[fFhH]$", text):
        return
    if text[-2:] in ("bf", "BF"):
        token.out = f"((bfloat){text[:-2]}f)"
    elif text[-1] in "hH":
        token.out = f"((half){text[:-1]}f)"
    elif text[-1] in "lL" and token.in_user_file:
        source.report(token, "'long double' is not supported in Metal")
    elif text[-1] not in "fF":
        token.out = text + "f"  # an unsuffixed literal is a float in Metal


def _bracket(source, index):
    """An attribute or a lambda at `[`; returns the index to go on after."""
    if source.is_attribute(index):
        attributes = source.attributes(index, source.partner[index] + 1)
        for attribute in attributes:
            if attribute.name not in METAL_ATTRIBUTES | CPP_ATTRIBUTES:
                source.report(attribute.token, f"unknown attribute '{attribute.name}'")
        if any(attribute.name not in CPP_ATTRIBUTES for attribute in attributes):
            source.erase(index, source.partner[index] + 1)
        return index + 1
    is_lambda = source.text(source.partner[index] + 1) in ("(", "{")
    if is_lambda and source.text(index - 1) in BEFORE_AN_OPERAND:
        message = "lambda expressions are not supported in Metal 3.1"
        source.report(source.tokens[index], message, "style")
    return index


def _vector_type_end(source, index, type_names):
    """The `)` after a type that is or may be a vector from `index` on, None if there is none."""
    if source.text(index) == "metal" and source.text(index + 1) == "::":
        index += 2
    if source.text(index) in VECTORS | type_names and source.text(index + 1) == ")":
        return index + 1
    if source.text(index) == "vec" and source.text(index + 1) == "<":
        end = source.angle_end(index + 1)
        return end + 1 if end is not None and source.text(end + 1) == ")" else None
    return None


def _rewrite_cast(source, paren, type_names):
    """(float4)x: an operator of the cast's precedence that converts each component."""
    end = _vector_type_end(source, paren + 1, type_names)
    if end is None or source.text(paren - 1) not in BEFORE_AN_OPERAND:
        return
    operand = source.tokens[end + 1]
    if operand.kind in ("name", "number") or operand.text in STARTS_AN_OPERAND:
        type_name = source.joined(paren + 1, end)
        source.erase(paren, end + 1)
        source.tokens[paren].out = f" msl_cast<{type_name}>() ->* "


def _rewrite_construction(source, index):
    """vec<T, 4>(...) and static_cast<float4>(...) as calls of msl_make."""
    token, before = source.tokens[index], source.text(index - 1)
    if source.text(index + 1) != "<" or token.text not in ("vec", "static_cast"):
        return
    end = source.angle_end(index + 1)
    if end is None:
        return
    if token.text == "static_cast":
        if source.joined(index + 2, end).replace("metal::", "") in VECTORS:
            token.out = "msl_make"
    elif before not in ("struct", "using", "class", "operator") and token.out:
        if source.text(end) == ">" and source.text(end + 1) == "(":
            token.out = "msl_make<" + token.out
            source.tokens[end].out = ">>"


def construct_through_names(source, type_names):
    """T(x, y) as msl_make<T>(x, y), for clang's vectors, which have no constructors."""
    for index, token in enumerate(source.tokens):
        before = source.tokens[index - 1]
        declares = before.kind == "name" and before.text != "return"
        if token.text not in type_names or token.out != token.text or declares:
            continue
        if source.text(index + 1) == "(" and before.text in BEFORE_AN_OPERAND:
            token.out = f"msl_make<{token.text}>"
