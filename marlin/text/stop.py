"""Finds stop strings in text while it arrives, without letting any part of one out.

Owns the text that may turn out to be the beginning of a stop string; refuses to know tokens.
"""


class StopMatcher:
    """Watches one generation's text for its stop strings.

    The match is the one a reader would notice first if the text came one character at a time: the
    stop string that ends earliest; of several that end at the same character, the longest. What is
    emitted does not depend on how the text was cut into pushes.

    Args:
        stops: non-empty strings; the server validates them and their number.

    Attributes:
        matched: the stop string that was found, or None.
    """

    def __init__(self, stops):
        assert all(stops), "an empty stop string would match at once"
        self._stops = [(stop, _borders(stop)) for stop in stops]
        # Per stop: how many of its characters the text so far ends with (Knuth, Morris and Pratt).
        self._progress = [0] * len(self._stops)
        self._held = ""
        self.matched: str | None = None

    def push(self, text):
        """Take more text.

        Returns:
            (text that is safe to emit, whether a stop string has matched). After a match nothing
            more is emitted.
        """
        if self.matched is not None:
            return "", True
        num_held = len(self._held)
        text = self._held + text
        for end in range(num_held + 1, len(text) + 1):
            if matched := self._step(text[end - 1]):
                self._held = ""
                return text[: end - len(matched)], True
        num_safe = len(text) - max(self._progress, default=0)
        self._held = text[num_safe:]
        return text[:num_safe], False

    def flush(self):
        """The text held back, for a generation that ended some other way; "" after a match."""
        text, self._held = self._held, ""
        self._progress = [0] * len(self._stops)
        return text

    def _step(self, char):
        for index, (stop, borders) in enumerate(self._stops):
            length = self._progress[index]
            while length and stop[length] != char:
                length = borders[length - 1]
            length += stop[length] == char
            self._progress[index] = length
            if length == len(stop) and length > len(self.matched or ""):
                self.matched = stop
        return self.matched


def _borders(stop):
    """For each prefix, the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(stop)
    length = 0
    for index in range(1, len(stop)):
        while length and stop[length] != stop[index]:
            length = borders[length - 1]
        length += stop[length] == stop[index]
        borders[index] = length
    return borders
