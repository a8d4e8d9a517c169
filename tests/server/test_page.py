"""The page at /: what a browser is told with it, and what it does in a real one (Debian's chromium
with its driver, and selenium; `-m long`)."""

import base64
import hashlib
import json
import re
import shutil
import time
from pathlib import Path

import pytest
from fakes import FakeEngine, say, wait_for_abort
from scripted import ARGUMENTS, CALL, THOUGHT, Qwen

ACCEPT = "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
HOSTILE = """<script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">
[a](javascript:window.hacked=3) [b](JaVaScRiPt:alert(1)) [c](data:text/html,x)
[d](https://d.example/)
<a href="javascript:window.hacked=4" onclick="window.hacked=5">e</a>
<style>body{display:none}</style>
```html
</code></pre><script>window.hacked = 6</script>
```
| <b>x</b> | y |
|---|---|
| <svg onload="window.hacked=7"> | `</td><script>` |
> > > > > > > > > > deep **never closed __ [ [ [ `
"""


def fetched(server, *headers):
    with server.connect() as client:
        return client.ask("GET", "/", headers=headers)


def test_a_browser_gets_the_page_and_a_program_gets_json(start_server):
    server = start_server(environ={"METAL_MARLIN_API_KEY": "key"})
    found = fetched(server, ACCEPT)
    assert found.status == 200
    assert found.headers["content-type"] == "text/html; charset=utf-8"
    assert b"<title>Metal Marlin</title>" in found.body
    assert len(found.body) < 60_000
    for accept in ((), ("Accept: */*",), ("Accept: application/json",)):
        assert "message" in fetched(server, *accept).json()


def test_a_server_without_the_page_answers_browsers_as_programs(start_server):
    server = start_server(options={"web_page": "false"})
    assert "message" in fetched(server, ACCEPT).json()


def test_the_policy_allows_the_pages_own_script_and_style_and_nothing_else(server):
    found = fetched(server, ACCEPT)
    policy = dict(
        part.strip().split(" ", 1) for part in found.headers["content-security-policy"].split(";")
    )
    for tag in ("script", "style"):
        (inner,) = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), found.body, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inner).digest()).decode()
        assert policy.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert policy == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg)", found.body)
    assert not re.search(
        rb"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", found.body
    )


class Page:
    """A browser at the page of a server, and what a person does there."""

    def __init__(self, driver, server, answers):
        self.driver, self.server, self.answers = driver, server, answers

    def open(self, width=1200):
        self.driver.set_window_size(width, 900)
        self.driver.get(f"http://127.0.0.1:{self.server.port}/")
        self.until(lambda: self.find("#model").text)

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def until(self, condition, seconds=20):
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, self.find("body").text[:3000]
            time.sleep(0.03)
        return found

    def click(self, words):
        """The last button that is called so."""
        named = [b for b in self.all("button") if b.is_displayed() and b.text == words]
        named[-1].click()

    def idle(self):
        self.until(lambda: self.find("#messages").get_attribute("aria-busy") != "true")

    def send(self, text, answer=None, wait=True):
        if answer is not None:
            self.answers.append(answer)
        self.find("#said").send_keys(text, "\ue007")
        if wait:
            self.idle()

    @property
    def last(self):
        return self.all("article")[-1]

    @property
    def prompt(self):
        return bytes(self.server.engine.requests[-1].prompt_token_ids).decode()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """Headless chromium without any host but this machine's loopback."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("needs chromium and chromedriver (Debian: chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    profile = tmp_path_factory.mktemp("profile")
    for word in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(word)
    downloads = tmp_path_factory.mktemp("downloads")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    made.downloads = downloads
    yield made
    made.quit()


@pytest.fixture
def page(driver, start_server):
    answers = []

    def script(request):
        answer = answers.pop(0)
        if not isinstance(answer, str):
            yield from answer(request)
            return
        for byte in answer.encode():
            time.sleep(0.001)
            yield [byte]

    server = start_server(FakeEngine(script), Qwen())
    made = Page(driver, server, answers)
    driver.get("about:blank")  # the page of the test before asks its server no more
    driver.get_log("browser")
    driver.get_log("performance")
    made.open()
    made.run("localStorage.clear(); sessionStorage.clear()")
    made.open()
    yield made
    refused = [line for line in driver.get_log("browser") if line["level"] == "SEVERE"]
    expected = [line for line in refused if "status of 4" in line["message"]]
    assert refused == expected


def asked_hosts(driver):
    """Of every request that the browser sent."""
    events = [json.loads(line["message"])["message"] for line in driver.get_log("performance")]
    urls = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    return {url.partition("//")[2].partition("/")[0] for url in urls if url.startswith("http")}


def set_field(page, field, text):
    page.click("Settings")
    page.run("document.getElementById(arguments[0]).value = arguments[1]", field, text)
    page.click("Done")


@pytest.mark.long
def test_a_person_chats_edits_regenerates_and_finds_it_all_again(page):
    page.send("Hello", THOUGHT + "**Bold** and `code`\n\n- one\n- two\n\n```py\nprint(1)\n```")
    assert page.last.find_element("css selector", "strong").text == "Bold"
    assert len(page.last.find_elements("css selector", "li")) == 2
    assert page.last.find_element("css selector", ".code code").text == "print(1)"
    thought = page.last.find_element("css selector", "details.thinking")
    assert "Hm." not in thought.text
    thought.find_element("css selector", "summary").click()
    assert "Hm." in thought.text
    assert "tokens/s" in page.last.text
    assert re.search(r"\d+ of 65536 tokens", page.find("#context-text").text)

    page.answers.append("Again.")
    page.click("Regenerate")
    page.idle()
    assert "Again." in page.last.text
    assert len(page.all("article")) == 2

    page.click("Edit")
    page.find("#said").clear()
    page.send("Goodbye", "Bye.")
    assert "Hello" not in page.prompt
    assert "Goodbye" in page.prompt
    assert len(page.all("article")) == 2

    page.open()
    assert "Bye." in page.last.text
    assert "Hello" in page.find("#chats").text


@pytest.mark.long
def test_an_answer_can_be_stopped_and_one_cut_by_its_length_goes_on(page):
    def endless(request):
        yield b"Once upon a time"
        wait_for_abort(request)

    page.send("Tell", endless, wait=False)
    page.until(lambda: "Once upon" in page.last.text)
    page.find("#said").send_keys("\ue00c")  # Escape
    page.idle()
    assert page.server.engine.aborted.acquire(timeout=10)
    assert "Once upon a time" in page.last.text

    set_field(page, "p-max_tokens", "4")
    set_field(page, "system", "Be brief.")
    page.send("More", "abcdefgh")
    assert "Be brief." in page.prompt
    page.answers.append("efgh")
    page.click("Continue")
    page.idle()
    assert "abcdefgh" in page.last.text
    assert page.prompt.endswith("abcd")


@pytest.mark.long
def test_what_an_answer_would_replace_comes_back_if_none_comes(page):
    page.send("One", "First.")
    set_field(page, "schema", '{"type": 3}')
    page.click("Regenerate")
    page.until(lambda: page.all(".error"))
    assert "First." in page.last.text
    page.click("Edit")
    page.find("#said").clear()
    page.send("Two")
    assert [article.text.split("\n")[1] for article in page.all("article")] == ["One", "First."]
    assert page.find("#said").get_attribute("value") == "Two"
    set_field(page, "schema", "")
    page.send("", "Second.")
    assert [article.text.split("\n")[1] for article in page.all("article")] == ["Two", "Second."]


@pytest.mark.long
def test_an_answer_that_does_not_go_on_can_still_be_gone_on_with(page):
    set_field(page, "p-max_tokens", "4")
    page.send("More", "abcdefgh")
    set_field(page, "schema", '{"type": 3}')
    page.click("Continue")
    page.until(lambda: page.all(".error"))
    set_field(page, "schema", "")
    page.answers.append("efgh")
    page.click("Continue")
    page.idle()
    assert "abcdefgh" in page.last.text


@pytest.mark.long
def test_two_tabs_keep_each_others_conversations(page, driver):
    page.send("In the first", "Yes.")
    first = driver.current_window_handle
    driver.switch_to.new_window("tab")
    page.open()
    page.click("New chat")
    page.send("In the second", "Yes.")
    driver.close()
    driver.switch_to.window(first)
    page.until(lambda: "In the second" in page.find("#chats").text)
    page.send("Again", "Yes.")
    page.open()
    assert {"In the first", "In the second"} <= {*page.find("#chats").text.split("\n")}


@pytest.mark.long
def test_tools_are_called_and_their_results_sent(page):
    tools = [
        {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    ]
    page.click("Settings")
    page.find("#tools").send_keys("[nonsense")
    page.click("Done")
    assert "no JSON" in page.find("#settings-error").text
    page.run("document.getElementById('tools').value = arguments[0]", json.dumps(tools))
    page.click("Done")
    page.send("Weather?", CALL)
    assert "Calls weather" in page.last.text
    assert json.loads(page.last.find_element("css selector", "code").text) == json.loads(ARGUMENTS)
    page.last.find_element("css selector", "textarea").send_keys("25 C")
    page.answers.append('{"degrees":25}')
    page.click("Send results")
    page.idle()
    assert "25 C" in page.prompt
    assert page.last.find_element("css selector", "code").text == '{\n  "degrees": 25\n}'


@pytest.mark.long
def test_nothing_of_a_hostile_answer_is_run_and_nothing_is_asked_elsewhere(page, driver):
    page.send("Be evil", HOSTILE)
    page.send("And large", "*[`_~" * 20_000 + "\n" + "> " * 2000 + "- " * 2000)
    assert page.run("return window.hacked") is None
    assert page.find("body").is_displayed()
    links = [link.get_attribute("href") for link in page.all("article a")]
    assert links == ["https://d.example/"]
    assert not page.all("article script, article img, article svg, article style, article iframe")
    page.click("Server")
    page.until(lambda: len(page.all("figure svg polyline")) >= 8)
    page.click("Chat")
    assert asked_hosts(driver) == {f"127.0.0.1:{page.server.port}"}


@pytest.mark.long
def test_errors_are_said_in_words(driver, start_server):
    server = start_server(FakeEngine(say(b"Fine.")), environ={"METAL_MARLIN_API_KEY": "secret"})
    page = Page(driver, server, [])
    driver.get(f"http://127.0.0.1:{server.port}/")
    page.run("localStorage.clear()")
    driver.get(f"http://127.0.0.1:{server.port}/")
    page.until(lambda: "asks for an API key" in page.find("#messages").text)
    set_field(page, "key", "secret")
    page.until(lambda: page.find("#model").text)
    page.send("Hi")
    assert "Fine." in page.last.text
    for tools in ('[{"type": "function", "function": {"name": "f"}}]', ""):
        set_field(page, "tools", tools)
        page.send("Hi")
        assert bool(tools) == ("tools" in page.find("#messages").text)
    server.http_server.drain(5)
    for _ in range(8):  # connections that were open are answered once more
        page.send("Anyone?")
        if page.all(".error"):
            break
    assert "cannot be reached" in page.find(".error").text


@pytest.mark.long
def test_conversations_go_out_to_a_file_and_come_back(page, driver, tmp_path):
    page.send("Remember", "Yes.")
    page.click("Export")
    name = driver.downloads / "metal-marlin-chats.json"
    page.until(name.exists)
    kept = name.read_text()
    assert "Remember" in kept
    page.click("Delete all")
    page.click("Yes")
    page.until(lambda: not page.all("article"))
    page.find("#file").send_keys(str(name))
    page.until(lambda: "Remember" in page.find("#chats").text)
    bad = tmp_path / "bad.json"
    bad.write_text('{"chats": 3}')
    page.find("#file").send_keys(str(bad))
    page.until(lambda: page.all(".error"))
    name.unlink()


@pytest.mark.long
@pytest.mark.parametrize("theme", ["Light", "Dark"])
@pytest.mark.parametrize("width", [1200, 375])
def test_axe_finds_nothing_serious(page, theme, width):
    axe = pytest.importorskip("axe_core_python", reason="needs axe-core-python")
    source = next(Path(axe.__file__).parent.glob("**/axe.min.js"))
    page.open(width)
    if page.find("#theme").text == theme:
        page.find("#theme").click()
    page.send("Hello", THOUGHT + HOSTILE)
    for name in ("Chat", "Server"):
        page.click(name)
        time.sleep(0.3)
        page.driver.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})
        page.run(source.read_text())
        found = page.driver.execute_async_script(
            "const done = arguments[0]; axe.run({resultTypes: ['violations']}).then(done)"
        )
        serious = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
        assert serious == []
    assert page.run("return document.documentElement.scrollWidth") <= width
