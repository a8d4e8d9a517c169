"""Every limit of the chat-template interpreter, and the budget one render draws on.

A template comes with a model file or with a request, so it is untrusted: it may loop, multiply and
nest as it likes, and must still end soon, in bounded memory, with text or with one clear error.
This file knows sizes and counts; it knows nothing of the template language.
"""

import time

from marlin.errors import TemplateError

# The longest template in common use is about 17,000 characters.
MAX_SOURCE_CHARS = 256 * 1024

# Brackets, operators and blocks inside one another. Parsing takes about 9 interpreter frames a
# level, and Python allows 1000 frames in all; published templates stay under 15.
MAX_NESTING = 64

# Macro calls inside one another; about 10 frames each. Rendering a JSON schema
# takes one level for each level of the schema.
MAX_CALL_DEPTH = 50

# Work units in one render; a unit is one token of the template executed, 0.1 to 0.3 microseconds,
# so a hostile template ends within a few seconds. A chat of 1000 messages takes about 6 % of it,
# and over half where the template walks the whole chat again for each message (Mistral Nemo,
# Gemma 4).
MAX_WORK = 10_000_000

# Processor seconds of one render, whatever its work was counted as: no count is exact, and a loaded
# machine must not fail a chat that an idle one renders. Work is a second or two of it.
MAX_SECONDS = 20

# Units between two looks at the clock: under a millisecond of plain statements.
WORK_PER_LOOK = 1000

# An iteration or macro call costs this many units more than its tokens: the scope it makes.
BODY_WORK = 4

# Characters copied or scanned for one unit: 80 million characters made in one render at most.
CHARS_PER_WORK = 8

# References copied from list to list for one unit: 160 MB of them in one render at most.
REFERENCES_PER_WORK = 2

# Bits of an integer made or printed for one unit; printing is quadratic, 15 microseconds for the
# longest.
BITS_PER_WORK = 64

# Entries compared for one unit, where all keys of a dict or set have the same hash.
ENTRIES_PER_WORK = 8

# Steps of a doubly nested scan (strip by a long set, search from the right) for one unit.
STEPS_PER_WORK = 128

# Characters in one string, and in the output with what macros wrote on the way: 8 million is a
# prompt of about two million tokens.
MAX_TEXT_CHARS = 8_000_000
MAX_OUTPUT_CHARS = 8_000_000

# Items in one list, tuple or dict made by a template.
MAX_ITEMS = 500_000

# Items in one range(), as jinja2's sandbox has it.
MAX_RANGE = 100_000

# Bits of a bound of a range: beyond a processor's word each of its numbers may be of any size.
MAX_BOUND_BITS = 64

# Bits of an integer; Python itself refuses to print integers of more than about 14,000.
MAX_INT_BITS = 8192

# Characters of a number in the source or read by the int filter: at most 5.2 bits each, in base 36.
MAX_NUMBER_CHARS = 1024

# Characters of a name in the source, which is copied into the reason why it is undefined.
MAX_NAME_CHARS = 256

# Characters of an attribute path ("a.b.0") given to a filter.
MAX_PATH_CHARS = 1024

# A key of more characters is charged for being compared, and is no attribute's name.
LONG_KEY_CHARS = 64

# Lists and dicts inside one another, in variables and in values that a template builds.
MAX_VALUE_DEPTH = 100

# Width, precision, indent and tab size in characters, wherever text is padded.
MAX_PADDING = 9999


class Fault(Exception):
    """A template's own mistake, or a limit it broke. Rendering turns it into a TemplateError."""


# What evaluating an expression may raise. MemoryError and RecursionError stand behind the limits
# above.
FAULTS = (Fault, ArithmeticError, LookupError, TypeError, ValueError, RecursionError, MemoryError)


def located(line, fault):
    """The TemplateError that tells a user about `fault` (an exception or a sentence) on a line."""
    if isinstance(fault, RecursionError):
        fault = "nesting limit: values, brackets or macro calls are nested too deeply"
    elif isinstance(fault, MemoryError):
        fault = "out of memory"
    elif isinstance(fault, KeyError):
        fault = f"no such key: {fault}"
    return TemplateError(f"template line {line}: {fault}")


class Budget:
    """What is left to one render. Every method raises Fault, naming the limit, when it is used up.

    Attributes:
        work_left: units, of MAX_WORK.
        output_left: characters, of MAX_OUTPUT_CHARS.
        call_depth: macro calls in progress.

    Args:
        clock: seconds that the render has computed; read in the thread that renders.
    """

    __slots__ = ("_clock", "_ends_at", "_next_look", "call_depth", "output_left", "work_left")

    def __init__(self, clock=time.thread_time):
        self._clock = clock
        self._ends_at = clock() + MAX_SECONDS
        self._next_look = MAX_WORK
        self.work_left = MAX_WORK
        self.output_left = MAX_OUTPUT_CHARS
        self.call_depth = 0

    def spend(self, units):
        self.work_left -= units
        if self.work_left < self._next_look:
            self._look()

    def _look(self):
        if self.work_left < 0:
            raise Fault(f"work limit: more than {MAX_WORK} steps in one render")
        if self._clock() > self._ends_at:
            raise Fault(f"time limit: more than {MAX_SECONDS} seconds of one render")
        self._next_look = max(0, self.work_left - WORK_PER_LOOK)

    def write(self, text):
        """Count text on its way to the output."""
        self.output_left -= len(text)
        if self.output_left < 0:
            raise Fault(f"output limit: more than {MAX_OUTPUT_CHARS} characters written")

    def scan(self, num_chars):
        self.spend(num_chars // CHARS_PER_WORK)

    def chars(self, num_chars):
        """Ask for a string of `num_chars` before making it."""
        _check_chars(num_chars)
        self.scan(num_chars)

    def grown(self, num_chars, num_added):
        """Ask for a text of `num_chars` before `num_added` of them are put to its end."""
        _check_chars(num_chars)
        self.scan(num_added)

    def bits(self, num_bits):
        """Ask for an integer of `num_bits` before making it."""
        if num_bits > MAX_INT_BITS:
            raise Fault(f"integer limit: an integer of more than {MAX_INT_BITS} bits")
        self.spend(num_bits // BITS_PER_WORK)

    def key(self, key, entries):
        """Ask to look `key` up in a dict or set, or to add it."""
        if isinstance(key, str):
            if len(key) > LONG_KEY_CHARS:
                self.scan(len(key))
            return
        if isinstance(key, tuple):
            self.weigh(key)
        # Numbers and tuples can be chosen so that all of their hashes are equal.
        self.spend(len(entries) // ENTRIES_PER_WORK)

    def items(self, num_items):
        """Ask for a list, tuple or dict of `num_items` before making it."""
        if num_items > MAX_ITEMS:
            raise Fault(f"item limit: a list of more than {MAX_ITEMS} items")
        self.spend(num_items)

    def references(self, num_items):
        """Ask for a list or tuple of `num_items` values that exist already."""
        if num_items > MAX_ITEMS:
            raise Fault(f"item limit: a list of more than {MAX_ITEMS} items")
        self.spend(num_items // REFERENCES_PER_WORK)

    def enter_call(self):
        self.call_depth += 1
        if self.call_depth > MAX_CALL_DEPTH:
            raise Fault(f"call limit: more than {MAX_CALL_DEPTH} macro calls inside one another")

    def leave_call(self):
        self.call_depth -= 1

    def weigh(self, value):
        """Walk a value before Python does so in one uninterruptible call (str, ==, sort, hash,
        JSON).

        Lists can share their parts, so that 60 small lists make a tree of 2**60 leaves; the walk
        pays for each visit and so stops early.

        Returns:
            (num_values, depth, num_chars) of the value as a tree.
        """
        num_values = num_chars = num_bits = depth = 0
        level = [value]
        while level:
            depth += 1
            if depth > MAX_VALUE_DEPTH:
                raise Fault(f"value depth limit: lists more than {MAX_VALUE_DEPTH} deep")
            num_values += len(level)
            self.spend(len(level))
            below = []
            for item in level:
                if isinstance(item, str):
                    num_chars += len(item)
                elif isinstance(item, int):
                    num_bits += item.bit_length()
                elif isinstance(item, _CONTAINERS):
                    self.spend(len(item))
                    below.extend(item)
                    if isinstance(item, dict):
                        below.extend(item.values())
            level = below
        self.spend(num_bits // BITS_PER_WORK)
        num_chars += num_bits // _BITS_PER_DIGIT
        self.scan(num_chars)
        return num_values, depth, num_chars

    def printed(self, value):
        """`weigh` a value that is to become text."""
        weight = self.weigh(value)
        _check_chars(weight[2])
        return weight


def _check_chars(num_chars):
    if num_chars > MAX_TEXT_CHARS:
        raise Fault(f"text limit: a string of more than {MAX_TEXT_CHARS} characters")


_CONTAINERS = (list, tuple, dict, type({}.keys()), type({}.values()), type({}.items()))
_BITS_PER_DIGIT = 3
