"""JSON Schemas at random, whose values are short: what a small model can come to the end of.

Owns the chance alone; knows neither grammars nor models.
"""

NAMES = ("name", "age", "tags", "kind", "on", "id", "größe", "x y")
PATTERNS = ("^[A-Z]{2}-[0-9]{2,4}$", "^(ab|cd)+$", "^[^0-9]{0,8}$", "[0-9]$")
FORMATS = ("date", "time", "ipv4", "uuid")


def random_schema(chooser, depth=3):
    """A schema of chooser, a random.Random."""
    kinds = [_text, _number, _listed, _text, _number]
    if depth:
        kinds += [_object, _object, _array, _either]
    return chooser.choice(kinds)(chooser, depth)


def _text(chooser, _):
    kind = chooser.randrange(3)
    if kind == 0:
        return {"type": "string", "format": chooser.choice(FORMATS)}
    if kind == 1:
        return {"type": "string", "pattern": chooser.choice(PATTERNS), "maxLength": 12}
    low = chooser.randrange(4)
    return {"type": "string", "minLength": low, "maxLength": low + chooser.randrange(12)}


def _number(chooser, _):
    low = chooser.randint(-1000, 1000)
    schema = {"type": "integer", "minimum": low, "maximum": low + chooser.randint(5, 2000)}
    if chooser.random() < 0.3:
        schema["multipleOf"] = chooser.choice((2, 3, 5))
    return schema


def _listed(chooser, _):
    values = (True, False, None, 7, -2.5, "red", "blau", ["a", 1], {"k": "v"})
    return {"enum": chooser.sample(values, chooser.randint(1, 4))}


def _object(chooser, depth):
    names = chooser.sample(NAMES, chooser.randint(0, 4))
    required = [name for name in names if chooser.random() < 0.6]
    return {
        "type": "object",
        "properties": {name: random_schema(chooser, depth - 1) for name in names},
        "required": required,
        "additionalProperties": False,
    }


def _array(chooser, depth):
    low = chooser.randrange(2)
    items = random_schema(chooser, depth - 1)
    return {"type": "array", "items": items, "minItems": low, "maxItems": low + 2}


def _either(chooser, depth):
    return {"anyOf": [random_schema(chooser, depth - 1) for _ in range(chooser.randint(1, 3))]}
