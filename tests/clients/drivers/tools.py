"""What every Python driver of tool loops shares: its settings, its question, its tool."""

import json
import os

ROOT_URL = os.environ["MARLIN_ROOT_URL"]
BASE_URL = f"{ROOT_URL}/v1"
MODEL = os.environ["MARLIN_MODEL"]
QUESTION = "How warm is it in Rome?"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "which city"}},
    "required": ["city"],
    "additionalProperties": False,
}
DESCRIPTION = "Tells how warm it is in a city."


def weather(city: str) -> str:
    """Tells how warm it is in a city.

    Args:
        city: which city
    """
    assert city == "Rome", city
    return "25 C"


def report(check, text):
    """Tell the test what a loop ended with."""
    print(json.dumps({"check": check, "text": text}), flush=True)
