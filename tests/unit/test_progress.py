"""What a terminal shows of work that takes a while, and that nothing else sees it."""

import io
import re
import time

from marlin.commands.progress import waiting


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_what_is_waited_for_and_is_clean_again_at_the_end():
    screen = Terminal()
    with waiting(screen, "loading tiny.gguf", lambda: 0.25, patience_s=0.01):
        wait_for(screen, "25%")
    assert re.match(r"\r\x1b\[Kloading tiny.gguf: 25% 0 s", screen.getvalue())
    assert screen.getvalue().endswith("\r\x1b[K")


def test_what_is_soon_over_leaves_no_trace():
    screen = Terminal()
    with waiting(screen, "loading tiny.gguf", patience_s=60):
        pass
    assert screen.getvalue() == ""


def test_the_line_can_end_before_the_work_does():
    screen = Terminal()
    with waiting(screen, "reading 9 tokens", patience_s=0.01) as end:
        wait_for(screen, "reading")
        end()
        shown = screen.getvalue()
        time.sleep(0.05)
        assert shown.endswith("\r\x1b[K") and screen.getvalue() == shown
    assert screen.getvalue() == shown


def test_no_terminal_shows_nothing():
    log = io.StringIO()
    with waiting(log, "loading tiny.gguf", patience_s=0) as end:
        time.sleep(0.05)
        end()
    assert log.getvalue() == ""


def wait_for(screen, text):
    end = time.monotonic() + 60
    while text not in screen.getvalue():
        assert time.monotonic() < end, screen.getvalue()
        time.sleep(0.005)
