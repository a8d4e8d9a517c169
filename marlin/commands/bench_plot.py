"""What `metal-marlin bench` draws of its figures: bars of characters, and an SVG file.

Knows the rows of its report and measures nothing.
"""

from html import escape

_BAR_CHARACTERS = 10
# Of the picture, in units of its own: a line of text and its bar, names, the longest bar.
_LINE, _NAMES, _BAR, _MARGIN = 22, 190, 420, 16
_COLOURS = {"prefill": "#3b6ea5", "decode": "#c46a2b"}  # told apart in grey, too


def bar(share: float) -> str:
    """A share of the best as characters, "#######..." of 0.7; nothing is longer than all."""
    count = round(min(1.0, max(0.0, share)) * _BAR_CHARACTERS)
    return "#" * count + "." * (_BAR_CHARACTERS - count)


def svg(report: dict) -> str:
    """The report's speeds as a picture: a bar for each prompt length and device or threads, the
    longest of prefill and of decode each as long as there is room."""
    parts, top = [], _MARGIN
    parts.append(_text(_MARGIN, top + 14, report["model"], 15))
    top += _LINE + 8
    for kind in ("prefill", "decode"):
        bars = list(_bars(report, kind))
        most = max(speed for _, speed, _ in bars)
        parts.append(_text(_MARGIN, top + 14, f"{kind}, tokens a second", 13))
        top += _LINE
        for name, speed, share in bars:
            width = _BAR * speed / most
            parts.append(_text(_MARGIN, top + 14, name, 12))
            parts.append(
                f'<rect x="{_NAMES}" y="{top + 3}" width="{width:.1f}" height="{_LINE - 8}" '
                f'fill="{_COLOURS[kind]}"/>'
            )
            parts.append(_text(_NAMES + width + 6, top + 14, f"{speed:,.0f} ({share:.0%})", 12))
            top += _LINE
        top += 8
    parts.append(_text(_MARGIN, top + 12, _NOTE, 11))
    size = _NAMES + _BAR + 120, top + _MARGIN + 8
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" '
    head += f'width="{size[0]}" height="{size[1]}" font-family="sans-serif">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>\n"])


_NOTE = "in brackets: of the arithmetic (prefill) and the bandwidth (decode) that the machine has"


def _bars(report, kind):
    """(name, tokens a second, share) of each bar."""
    share = "prefill_share_of_peak" if kind == "prefill" else "decode_share_of_bandwidth"
    for result in report["results"]:
        where = f"{result['threads']} threads" if result["threads"] else result["device"]
        for row in result["rows"]:
            name = f"{row['prompt_tokens']} tokens, {where}"
            yield name, row[f"{kind}_tokens_per_s"], row[share]


def _text(x, y, text, size):
    return f'<text x="{x:.1f}" y="{y}" font-size="{size}" fill="#222">{escape(text)}</text>'
