"""Rules and rewrites inside functions and classes: address spaces that Metal wants spelled out,
threadgroup variables, static variables, members overloaded on the address space of `this`.

A threadgroup variable becomes MSL_TG_DECL(name, type), which each backend defines for itself.
"""

from msl.source import ADDRESS_SPACES

QUALIFIERS = {"static", "const", "constexpr", "volatile", "inline", "typename", "mutable"}
STATEMENT_WORDS = set(
    "return auto if for while else case using typedef delete operator goto do switch".split()
)
NO_SPACE = "type must have explicit address space qualifier"


def indirection(text):
    return "pointer" if text == "*" else "reference"


def check_parameters(source, low, high):
    """Parameters of an ordinary function: an address space on each pointer and reference."""
    for start, end in source.split_at_commas(low, high):
        first = source.tokens[start]
        if not first.in_user_file:
            continue
        words = [token.text for token in source.tokens[start:end]]
        has_space = bool(ADDRESS_SPACES.intersection(words))
        if has_space and "[" in words and not {"*", "&", "("} & set(words[: words.index("[")]):
            _array_to_pointer(source, start + words.index("["))
        stars = [k for k, word in enumerate(words) if word in ("*", "&")]
        if not stars or has_space or words[0] == "auto" or "(" in words[: stars[0]]:
            continue
        source.report(first, f"{indirection(words[stars[0]])} {NO_SPACE}")


def _array_to_pointer(source, bracket):
    """`constant T x[2]` as a parameter is a pointer, which C++ cannot say with an address space."""
    name = source.tokens[bracket - 1]
    name.out = "*" + name.out
    source.erase(bracket, source.partner[bracket] + 1)


def check_body(source, brace, is_kernel, is_class=False):
    """Every statement or member between `{` at `brace` and its partner."""
    tokens, end = source.tokens, source.partner[brace]
    at_start = True
    for index in range(brace + 1, end):
        if at_start and tokens[index].in_user_file:
            _check_statement(source, index, is_kernel, is_class)
        text, before = tokens[index].text, source.text(index - 1)
        at_start = text in ("{", "}", ";") or (text == "(" and before == "for")
        at_start = at_start or (text == ":" and before in ("public", "private", "protected"))


def _check_statement(source, start, is_kernel, is_class):
    index, qualifiers = start, set()
    while True:
        if source.is_attribute(index):
            index = source.partner[index] + 1
        elif source.text(index) == "alignas":
            index = source.partner[index + 1] + 1
        elif source.text(index) in QUALIFIERS:
            qualifiers.add(source.text(index))
            index += 1
        else:
            break
    token = source.tokens[index]
    if token.text == "threadgroup":
        _threadgroup_variable(source, start, index, is_kernel)
    elif token.kind == "name" and token.text not in STATEMENT_WORDS | ADDRESS_SPACES:
        _check_declared_pointer(source, start, index)
    constant = "constant" in (source.text(k) for k in range(start, index + 4))
    if "static" in qualifiers and not is_class and not constant:
        source.report(source.tokens[start], "static variables are not supported inside functions")


def _check_declared_pointer(source, start, index):
    """`float *p = ...`: nothing says which memory p points into."""
    index += 1
    while source.text(index) == "::":
        index += 2
    if source.text(index) == "<":
        end = source.angle_end(index)
        index = end + 1 if end is not None else index
    has_space = False
    while source.text(index) in ADDRESS_SPACES or source.text(index) in ("const", "volatile"):
        has_space = has_space or source.text(index) in ADDRESS_SPACES
        index += 1
    star = source.text(index)
    if star not in ("*", "&", "&&") or has_space or index + 2 >= len(source):
        return
    if source.tokens[index + 1].kind == "name" and source.text(index + 2) in "=;,[:":
        source.report(source.tokens[start], f"{indirection(star)} {NO_SPACE}")


def _threadgroup_variable(source, start, keyword, is_kernel):
    """Rewrite `threadgroup T a[4], b;`; a pointer into threadgroup memory stays as it is."""
    index = keyword + 1
    while source.text(index) not in ("[", ";", "=", ",", "{"):
        if source.text(index) in ("*", "&", "&&", "(", ""):
            return
        if source.text(index) == "<" and source.angle_end(index) is not None:
            index = source.angle_end(index)
        index += 1
    if not is_kernel:
        message = "threadgroup variables can only be declared in a kernel function"
        source.report(source.tokens[keyword], message)
    words = [source.text(k) for k in range(keyword + 1, index - 1)]
    type_name = " ".join(word for word in words if word != "const")
    declarators, end = _declarators(source, index - 1)
    source.erase(start, end)
    made = [f"MSL_TG_DECL({name}, {type_name} {dimensions})" for name, dimensions in declarators]
    source.tokens[start].out = "; ".join(made)


def _declarators(source, name):
    """(name, array dimensions) of each variable from token `name` on, and the index of the `;`."""
    found, index, stop = [], name + 1, None
    while True:
        text = source.text(index)
        if text in ("[", "(", "{"):
            stop = stop or (index if text == "{" else None)
            index = source.partner[index] + 1
            continue
        if text == "=":
            message = "the initializer of a threadgroup variable is stored by every thread"
            source.report(source.tokens[index], message, "style")
            stop = index
        if text in (",", ";", ""):
            found.append((source.text(name), source.joined(name + 1, stop or index)))
            if text != ",":
                return found, index
            name, stop = index + 1, None
        index += 1


def keep_thread_members(source, brace):
    """Erase members that are overloads for another address space of `this`, such as
    `T get() const device {...}`: C++ has no such qualifier, and the thread version remains."""
    index = begin = brace + 1
    end = source.partner[brace]
    while index < end:
        text = source.text(index)
        if text == "(":
            after = _member_in_space(source, source.partner[index] + 1)
            if after is not None:
                source.erase(begin, after)
            index = after if after is not None else source.partner[index] + 1
            begin = index if after is not None else begin
            continue
        if text == "{":
            index = source.partner[index] + 1
            begin = begin if source.text(index) in (";", ",") else index
            continue
        access = text == ":" and source.text(index - 1) in ("public", "private", "protected")
        begin = index + 1 if text == ";" or access else begin
        index += 1


def _member_in_space(source, index):
    """The end of a member whose parameter list ended at `index`, None unless it names a space."""
    while source.text(index) in ("const", "volatile"):
        index += 1
    if source.text(index) not in ("device", "constant", "threadgroup"):
        return None
    if source.text(index + 1) not in ("{", ":", ";", "="):
        return None
    index += 1
    while source.text(index) not in ("{", ";"):
        index = source.partner[index] + 1 if source.text(index) in ("(", "[") else index + 1
    return (source.partner[index] if source.text(index) == "{" else index) + 1
