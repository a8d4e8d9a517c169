"""Every limit of the chat-template interpreter, and the budget one render draws on.

A template comes with a model file or with a request, so it is untrusted: it may loop, multiply and
nest as it likes, and must still end soon, in bounded memory, with text or with one clear error.
This file knows sizes and counts; it knows nothing of the template language.
"""

import time
from typing import NamedTuple

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

# Units for each item that a filter takes, above what the filter's own function spends.
ITEM_WORK = 3

# Characters copied or scanned for one unit: 80 million characters made in one render at most.
CHARS_PER_WORK = 8

# Bits of an integer made or printed for one unit; printing is quadratic, 15 microseconds for the
# longest.
BITS_PER_WORK = 64

# Entries compared for one unit, where all keys of a dict or set have the same hash.
ENTRIES_PER_WORK = 8

# Steps of a doubly nested scan (strip by a long set, search from the right) for one unit.
STEPS_PER_WORK = 128

# Characters in the output with what macros wrote on the way.
MAX_OUTPUT_CHARS = 8_000_000

# Characters of a name in the source, which is copied into the reason why it is undefined.
MAX_NAME_CHARS = 256

# A key of more characters is charged for being compared, and is no attribute's name.
LONG_KEY_CHARS = 64

# Lists and dicts inside one another, in variables and in values that a template builds.
MAX_VALUE_DEPTH = 100


class Limit(NamedTuple):
    """How much of something there may be at once, and how much of it costs one unit of work."""

    most: int
    message: str
    per_work: int = 1


# 8 million characters are a prompt of about two million tokens.
TEXT = Limit(8_000_000, "text limit: a string of more than {} characters", CHARS_PER_WORK)
ITEMS = Limit(500_000, "item limit: a list of more than {} items")
# Values that exist already, copied from list to list: 160 MB of them in one render at most.
REFERENCES = ITEMS._replace(per_work=2)
# Python itself refuses to print integers of more than about 14,000 bits.
INTEGER = Limit(8192, "integer limit: an integer of more than {} bits", BITS_PER_WORK)
# At most 5.2 bits each, in base 36.
DIGITS = Limit(1024, "integer limit: a number of more than {} characters")
# As jinja2's sandbox has it.
RANGE = Limit(100_000, "range limit: a range of more than {} numbers", CHARS_PER_WORK)
# Beyond a processor's word each number of a range may be of any size.
BOUND = Limit(64, "range limit: a bound of more than {} bits")
PATH = Limit(1024, "path limit: an attribute path of more than {} characters")
# Width, precision, indent and tab size, wherever text is padded.
PADDING = Limit(9999, "padding limit: a width of more than {} characters", CHARS_PER_WORK)


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

    def check(self, limit, amount):
        """Refuse more of something at once than its Limit."""
        if amount > limit.most:
            raise Fault(limit.message.format(limit.most))

    def take(self, limit, amount):
        """Ask for `amount` of what a Limit counts, before it is made."""
        if amount > limit.most:
            raise Fault(limit.message.format(limit.most))
        self.spend(max(0, amount) // limit.per_work)

    def scan(self, num_chars, num_compared=0):
        """Pay for reading a text, and for comparing it at each place with another, at worst."""
        self.spend(num_chars // CHARS_PER_WORK + num_chars * num_compared // STEPS_PER_WORK)

    def write(self, text):
        """Count text on its way to the output."""
        self.output_left -= len(text)
        if self.output_left < 0:
            raise Fault(f"output limit: more than {MAX_OUTPUT_CHARS} characters written")

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

    def enter_call(self):
        self.call_depth += 1
        if self.call_depth > MAX_CALL_DEPTH:
            raise Fault(f"call limit: more than {MAX_CALL_DEPTH} macro calls inside one another")

    def weigh(self, value):
        """Walk a value before Python does so in one uninterruptible call (str, ==, sort, hash,
        JSON).

        Lists can share their parts, so that 60 small lists make a tree of 2**60 leaves; the walk
        pays for each visit and so stops early.

        Returns:
            (num_values, depth, num_chars) of the value as a tree.
        """
        num_values = num_chars = num_bits = depth = 0
        for depth, level in levels(value):
            if depth > MAX_VALUE_DEPTH:
                raise Fault(f"value depth limit: lists more than {MAX_VALUE_DEPTH} deep")
            num_values += len(level)
            self.spend(len(level))
            for item in level:
                if isinstance(item, str):
                    num_chars += len(item)
                elif isinstance(item, int):
                    num_bits += item.bit_length()
                elif isinstance(item, _CONTAINERS):
                    self.spend(len(item))
        self.spend(num_bits // BITS_PER_WORK)
        num_chars += num_bits // _BITS_PER_DIGIT
        self.scan(num_chars)
        return num_values, depth, num_chars

    def printed(self, value):
        """`weigh` a value that is to become text."""
        weight = self.weigh(value)
        self.check(TEXT, weight[2])
        return weight


def levels(value):
    """(depth, [values]) of a value: itself, then what it holds, and so on.

    Each level is gathered when it is asked for, so that its reader can stop before.
    """
    depth, level = 1, [value]
    while level:
        yield depth, level
        below = []
        for item in level:
            if isinstance(item, _CONTAINERS):
                below.extend(item)
                if isinstance(item, dict):
                    below.extend(item.values())
        depth, level = depth + 1, below


_CONTAINERS = (list, tuple, dict, type({}.keys()), type({}.values()), type({}.items()))
_BITS_PER_DIGIT = 3
