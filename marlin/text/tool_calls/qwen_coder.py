"""Qwen3-Coder, Qwen 3.5, Seed-OSS: a function and its parameters as tags."""

from marlin.text.tool_calls.family import Family
from marlin.text.tool_calls.scanner import Reading, Scanner, drop
from marlin.text.tool_calls.tagged import Tags, tagged_call

FUNCTION = "<function="


def _family(name, opening, closing):
    tags = Tags((">",), "<parameter=", ">", "</parameter>", ("</function>", closing), trims=True)

    def read(scan: Scanner) -> Reading[None]:
        # Models leave the outer tag out at times.
        marker = yield from scan.content(opening, FUNCTION)
        while marker:
            if marker == opening:
                marker = yield from scan.until((FUNCTION, closing), drop)
                continue
            if marker == FUNCTION:
                yield from tagged_call(scan, tags)
            marker = yield from scan.content(opening, FUNCTION, closing)

    return Family(name, (opening, FUNCTION, "<parameter="), read, (opening, closing))


FAMILY = _family("qwen_coder", "<tool_call>", "</tool_call>")
SEED = _family("seed", "<seed:tool_call>", "</seed:tool_call>")
