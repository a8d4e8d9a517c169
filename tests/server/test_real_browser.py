"""Pages of a real browser against a server without a key: what test_browsers.py sends by hand.

A browser is a Chromium that is installed; `--dump-dom` prints what a page's script has written.
"""

import http.server
import shutil
import subprocess
import threading

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# What the page tells: of each attempt, the status that it could read, or that it could not.
PAGE = """<!doctype html><meta charset="utf-8"><p id="said">nothing</p><script>
const said = [];
async function attempt(name, url, options) {
  try { said.push(name + "=" + (await fetch(url, options)).status); }
  catch (error) { said.push(name + "=unread"); }
}
(async () => {
  const body = JSON.stringify({model: "tiny", prompt: "a", max_tokens: 1});
  await attempt("simple", "URL/v1/completions", {method: "POST", body});
  await attempt("opaque", "URL/v1/completions", {method: "POST", body, mode: "no-cors"});
  await attempt("json", "URL/v1/completions",
                {method: "POST", body, headers: {"Content-Type": "application/json"}});
  await attempt("read", "URL/v1/models", {});
  document.getElementById("said").textContent = said.join(" ");
})();
</script>"""


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    return found


@pytest.fixture
def page():
    """page(text) -> the port of a foreign server that has it."""
    servers = []

    def serve(text):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                content = text.encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1].server_address[1]

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def shown(browser, url, folder):
    """What the page at url has written; every name of a host leads to this machine."""
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    words += [f"--user-data-dir={folder}", "--virtual-time-budget=20000"]
    words += ["--host-resolver-rules=MAP * 127.0.0.1", "--dump-dom", url]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout


@pytest.mark.long
def test_a_foreign_page_neither_uses_the_server_nor_reads_it(browser, start_server, page, tmp_path):
    server = start_server()
    port = page(PAGE.replace("URL", f"http://127.0.0.1:{server.port}"))
    said = shown(browser, f"http://evil.example:{port}/", tmp_path)
    assert "simple=unread opaque=0 json=unread read=unread" in said, said
    assert server.engine.requests == []


@pytest.mark.long
def test_a_name_that_was_pointed_at_this_machine_is_refused(browser, start_server, page, tmp_path):
    """DNS rebinding: to the browser the page and the server are one origin, and it reads a 403."""
    server = start_server()
    url = f"http://evil.example:{server.port}/v1/models"
    assert "may not call the server evil.example" in shown(browser, url, tmp_path)
    assert server.engine.requests == []


@pytest.mark.long
def test_the_same_browser_is_let_in_where_an_operator_says_so(
    browser, start_server, page, tmp_path
):
    """And so the tests above can fail: a page of an allowed origin reads its answers."""
    server = start_server(options={"allowed_origins": "*"})
    port = page(PAGE.replace("URL", f"http://127.0.0.1:{server.port}"))
    said = shown(browser, f"http://evil.example:{port}/", tmp_path)
    assert "json=200 read=200" in said, said
    assert len(server.engine.requests) == 1
