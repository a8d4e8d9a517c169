"""The `llm` command, told of the server as its documentation says."""

import json
import os
import subprocess
import sys
from pathlib import Path

from report import BASE_URL, CHAT_REQUEST, MAX_TOKENS, MODEL, QUESTION, report

settings = Path("llm")
settings.mkdir()
# JSON is YAML, too.
models = [
    {"model_id": "marlin", "model_name": MODEL, "api_base": BASE_URL, "api_key_name": "marlin"}
]
(settings / "extra-openai-models.yaml").write_text(json.dumps(models))
(settings / "keys.json").write_text('{"marlin": "unused"}')
OPTIONS = ("-o", "temperature", "0", "-o", "max_tokens", str(MAX_TOKENS))

for check, more in (("chat", ["--no-stream"]), ("chat stream", [])):
    text = subprocess.run(
        [sys.executable, "-m", "llm", "-m", "marlin", *OPTIONS, *more, QUESTION],
        env={**os.environ, "LLM_USER_PATH": str(settings)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    report(check, text.removesuffix("\n"), CHAT_REQUEST)
