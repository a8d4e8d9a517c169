"""aider in its chat mode, through a relay that keeps the messages that it makes."""

import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

from report import BASE_URL, MODEL, QUESTION, report

SETTINGS = Path("settings.yml")
OPTIONS = (
    *("--model", f"openai/{MODEL}", "--chat-mode", "ask", "--map-tokens", "0", "--no-git"),
    *("--model-settings-file", str(SETTINGS), "--yes-always", "--no-analytics"),
    *("--no-check-update", "--no-show-release-notes", "--no-pretty"),
    *("--no-show-model-warnings", "--no-detect-urls"),
)
bodies = []


class Relay(http.server.BaseHTTPRequestHandler):
    """Passes a chat request on, and the answer back as it is."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        bodies.append(json.loads(body))
        kind = {"Content-Type": self.headers["Content-Type"]}
        request = urllib.request.Request(f"{BASE_URL}/chat/completions", body, kind)
        with urllib.request.urlopen(request) as answer:
            self.send_response(200)
            self.send_header("Content-Type", answer.headers["Content-Type"])
            self.end_headers()
            self.wfile.write(answer.read())

    def log_message(self, *_):
        pass


relay = http.server.HTTPServer(("127.0.0.1", 0), Relay)
threading.Thread(target=relay.serve_forever, daemon=True).start()
# JSON is YAML, too. Room for the whole answer: one that is cut ends aider with a warning.
extra = {"max_tokens": 512, "temperature": 0}
SETTINGS.write_text(json.dumps([{"name": f"openai/{MODEL}", "extra_params": extra}]))
ended = subprocess.run(
    [sys.executable, "-m", "aider", *OPTIONS, "--message", QUESTION],
    env={
        **os.environ,
        "OPENAI_API_BASE": f"http://127.0.0.1:{relay.server_port}",
        "OPENAI_API_KEY": "unused",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    },
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
)
assert ended.returncode == 0 and len(bodies) == 1, ended.stdout + ended.stderr
# After the line that names the repository map, aider prints the answer and counts tokens.
answer = ended.stdout.partition("Repo-map: disabled\n")[2].rpartition("\nTokens: ")[0]
asked = {name: bodies[0][name] for name in ("messages", "max_tokens")}
report("answer", answer.strip(), asked)
