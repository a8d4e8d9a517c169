"""What every Python driver shares: its settings, and how it tells what a client got."""

import json
import os

BASE_URL = os.environ["MARLIN_BASE_URL"]
MODEL = os.environ["MARLIN_MODEL"]
QUESTION = os.environ["MARLIN_QUESTION"]
MAX_TOKENS = int(os.environ["MARLIN_MAX_TOKENS"])
MESSAGES = [{"role": "user", "content": QUESTION}]
CHAT_REQUEST = {"messages": MESSAGES}
COMPLETION_REQUEST = {"prompt": QUESTION}


def report(check, text, request):
    """Tell the test the text that a client got, and what is to give it without the client."""
    print(json.dumps({"check": check, "text": text, "request": request}), flush=True)
