"""Qwen3-Coder, Qwen 3.5, Seed-OSS: a function and its parameters as tags."""

from marlin.text.tool_calls.family import Family
from marlin.text.tool_calls.scanner import Reading, Scanner, drop
from marlin.text.tool_calls.shape import Shape, in_tags
from marlin.text.tool_calls.tagged import Tags, tagged_call

FUNCTION = "<function="


def _family(name, opening, closing, line):
    """line: what is between a value and its tags."""
    tags = Tags((">",), "<parameter=", ">", "</parameter>", ("</function>", closing), trims=True)

    def read(scan: Scanner) -> Reading[None]:
        # Models leave the outer tag out at times.
        marker = yield from scan.content(opening, FUNCTION)
        while marker:
            if marker == opening:
                marker = yield from scan.until((FUNCTION, closing), drop)
            if marker == FUNCTION:
                yield from tagged_call(scan, tags)
            marker = yield from scan.content(opening, FUNCTION, closing)

    call = in_tags(
        lambda name: f"{opening}\n<function={name}>\n",
        lambda key, is_text: f"<parameter={key}>{line}",
        f"{line}</parameter>\n",
        f"</function>\n{closing}",
    )
    markers, written = (opening, closing), (opening, FUNCTION, "<parameter=")
    return Family(name, written, read, markers, Shape(call, between="\n"))


FAMILY = _family("qwen_coder", "<tool_call>", "</tool_call>", "\n")
SEED = _family("seed", "<seed:tool_call>", "</seed:tool_call>", "")
