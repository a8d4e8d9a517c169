"""The families of tool-call formats, one row each, and which of them a template writes."""

from marlin.text.tool_calls import (
    deepseek,
    gemma,
    glm,
    harmony,
    hermes,
    kimi,
    lfm2,
    llama,
    minimax,
    mistral,
    qwen_coder,
)
from marlin.text.tool_calls.family import Family

# A template writes the first whose texts it has: those with more particular texts come first.
FAMILIES = (
    harmony.FAMILY,
    *deepseek.DSML,
    deepseek.FAMILY,
    kimi.FAMILY,
    minimax.FAMILY,
    glm.FAMILY,
    qwen_coder.FAMILY,
    qwen_coder.SEED,
    gemma.FAMILY,
    gemma.FUNCTION,
    mistral.FAMILY,
    mistral.ARRAY,
    hermes.NEMOTRON,
    hermes.APRIEL,
    hermes.FAMILY,
    llama.FAMILY,
    lfm2.FAMILY,
    lfm2.LISTED,
)


def family_of(text: str) -> Family | None:
    """The family of the calls that a text shows or asks for."""
    for family in FAMILIES:
        if all(part in text for part in family.written):
            return family
    return None
