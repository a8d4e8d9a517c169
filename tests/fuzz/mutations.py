"""Changes to a valid input, each small: of bytes, and of JSON that stays JSON."""

import json
import struct

NUMBERS = (0, 1, -1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, -(2**63), 2**64 - 1, 7, 1 << 40)
VALUES = (None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, "", "a",
          "\x00", "\u202e", "\ud83d\ude00" * 40, "x" * 3000, [], {}, [[]] * 20,
          {"": None})  # fmt: skip


def of_bytes(rng, data):
    """One to eight changes."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        _change(rng, data)
    return bytes(data)


def _change(rng, data):
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice((1, 2, 4, 8, 64)))
    kind = rng.randrange(6)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[at:end]
    elif kind == 2:
        data[at:at] = data[at:end] * rng.choice((1, 1, 2, 50))
    elif kind == 3:
        number = rng.choice(NUMBERS) % 2**64
        data[at : at + 8] = struct.pack("<Q", number)
    elif kind == 4:
        data[at:end] = rng.randbytes(end - at)
    else:
        del data[at:]


def of_json(rng, text):
    """One to three values, names or members of a document changed; now and then its bytes."""
    if rng.random() < 0.1:
        return of_bytes(rng, text)
    document = json.loads(text)
    for _ in range(rng.choice((1, 1, 2, 3))):
        document = _with_change(rng, document)
    return json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def _with_change(rng, value):
    """value with a change somewhere in it: the deeper, the less often."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.15:
        return _other(rng, value)
    names = list(value) if isinstance(value, dict) else range(len(value))
    name, kind = rng.choice(names), rng.random()
    changed = dict(value) if isinstance(value, dict) else list(value)
    if kind < 0.1:
        del changed[name]
    elif kind < 0.15 and isinstance(changed, dict):
        changed[rng.choice(("", "x", name + "s", name.upper()))] = changed[name]
    elif kind < 0.15:
        changed *= rng.choice((2, 10))
    else:
        changed[name] = _with_change(rng, changed[name])
    return changed


def _other(rng, value):
    if isinstance(value, str) and rng.random() < 0.5:
        return of_bytes(rng, value.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")
    if type(value) in (int, float) and rng.random() < 0.5:
        return rng.choice((value + 1, value - 1, -value, value * 2, value / 3, str(value)))
    return rng.choice(VALUES)


def of_text(rng, text, words):
    """A template: pieces moved, doubled, dropped, words of the language put in."""
    data = text
    for _ in range(rng.choice((1, 2, 3, 5))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 3, 10, 200)))
        kind = rng.randrange(4)
        if kind == 0:
            data = data[:at] + data[end:]
        elif kind == 1:
            data = data[:at] + rng.choice(words) + data[at:]
        elif kind == 2:
            data = data[:at] + data[at:end] * rng.choice((2, 3, 30)) + data[end:]
        else:
            data = data[:at] + rng.choice(words) + data[end:]
    return data
