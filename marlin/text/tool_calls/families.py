"""The families of tool-call formats, one row each, and which of them a template writes."""

from marlin.text.tool_calls import hermes
from marlin.text.tool_calls.family import Family

# The first whose texts a template writes: those with more particular texts come first.
FAMILIES = (hermes.FAMILY,)


def family_of(text: str) -> Family | None:
    """The family of the calls that a text shows or asks for."""
    for family in FAMILIES:
        if all(part in text for part in family.written):
            return family
    return None
