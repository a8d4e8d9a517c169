"""Chat templates: the public face of the template interpreter.

Renders the template language that model publishers write their chat templates in, as `transformers`
renders it: jinja2's language with trim_blocks, lstrip_blocks, loop controls and the `generation`
block, in a sandbox where values cannot change. The interpreter is the package `template`; it
evaluates no Python, looks up no Python attribute by name, and stops at the limits of
template/limits.py. It knows nothing of models or tokens.
"""

from datetime import datetime

from marlin.text.template.globals import make_globals
from marlin.text.template.limits import FAULTS, Budget, located
from marlin.text.template.statements import parse
from marlin.text.template.values import Scope, check_variables


class ChatTemplate:
    """A parsed template. Never changes after __init__; any number of threads may render it at once.

    Args:
        source: template text, at most MAX_SOURCE_CHARS characters; an attribute, too.

    Raises:
        TemplateError: the text is not a valid template; the message holds the line.
    """

    def __init__(self, source):
        self.source = source
        try:
            self._body = parse(source)
        except RecursionError as error:
            raise located(1, error) from error

    def render(self, variables, *, now=datetime.now):
        """Render once.

        Args:
            variables: dict of name to plain value (None, bool, int, float, str, list, tuple, dict,
                nested at will). Not changed.
            now: the clock of strftime_now: a function without arguments giving a datetime.

        Returns:
            str.

        Raises:
            TemplateError: the template failed (with the line), broke a limit (with its name) or
                called raise_exception (with exactly its message), or a variable is not a plain
                value. Nothing else.
        """
        try:
            check_variables(variables)
            outer = Scope(make_globals(now), None, Budget()).child(variables)
            text, _ = outer.child({}).written(self._body)
        except FAULTS as fault:
            raise located(1, fault) from fault
        return text
