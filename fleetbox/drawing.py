"""A timeline as an SVG picture (SVG 1.1), which any browser shows."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Iterator
from xml.sax.saxutils import escape

from fleetbox.timeline import Operation, Row, Span, Timeline

_WIDTH = 960
_MARGIN = 16
_ROW = 26
_BAR = 16
_LETTER = 7.2  # of the font at 12 pixels, in pixels
_NO_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_COLORS = {
    "image": "#8c8c8c",
    "network": "#5b7f95",
    "template": "#b08a3e",
    "disk": "#7a9e57",
    "boot": "#3f74b5",
    "restore": "#5a9bd4",
    "identity": "#8d64ab",
    "address": "#3a9a96",
    "ssh": "#c4713b",
}
_OTHERS = ("#7d6b5d", "#9b5f7c", "#5f8f6b", "#6a6f9c")
_FAILED = "#c0392b"
_STYLE = """
text { font: 12px ui-monospace, "DejaVu Sans Mono", monospace; fill: #222; }
.title { font-weight: bold; font-size: 13px; }
.faint { fill: #777; }
.grid { stroke: #ddd; stroke-width: 1; }
.open { fill-opacity: 0.45; }
"""


def draw(timeline: Timeline) -> str:
    """The picture, as an SVG document."""
    steps = list(dict.fromkeys(s.step for o in timeline.operations for r in o.rows for s in r.spans))
    others = iter(_OTHERS * (1 + len(steps) // len(_OTHERS)))
    colors = {step: _COLORS.get(step) or next(others) for step in steps}
    left = (
        _MARGIN + 12 + _LETTER * max((len(r.member or "(all)") for o in timeline.operations for r in o.rows), default=8)
    )
    body: list[str] = []
    top = _MARGIN + 14.0
    body.append(_text(_MARGIN, top, f"{timeline.cluster}: last boots and clones", "title"))
    top += 14
    if not timeline.operations:
        body.append(_text(_MARGIN, top + 14, "none is in the event log", "faint"))
        top += 24
    for operation in timeline.operations:
        body += _operation(operation, left, top, colors)
        top += 24 + _ROW * len(operation.rows) + 30
    body += _legend(colors, top)
    height = top + 12 + 20 * math.ceil(len(colors) / _per_line(colors)) + _MARGIN
    size = f'width="{_WIDTH}" height="{height:.0f}"'
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {_WIDTH} {height:.0f}" role="img">',
        f"<title>{_escaped(f'Timeline of the cluster {timeline.cluster}')}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect {size} fill="#fff"/>',
    ]
    return "\n".join([*head, *body, "</svg>\n"])


def _operation(operation: Operation, left: float, top: float, colors: dict[str, str]) -> Iterator[str]:
    at = dt.datetime.fromtimestamp(operation.begun_at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    head = f"{operation.name}  {at}  {operation.state} in {operation.seconds:.1f} s"
    yield _text(_MARGIN, top + 16, head, "faint")
    begin, right = top + 24, _WIDTH - _MARGIN - 8
    scale = (right - left) / max(operation.seconds, 1e-9)
    bottom = begin + _ROW * len(operation.rows)
    for second in _ticks(operation.seconds):
        x = left + second * scale
        yield f'<line class="grid" x1="{x:.1f}" y1="{begin:.1f}" x2="{x:.1f}" y2="{bottom + 4:.1f}"/>'
        yield _text(x, bottom + 17, f"{second:g} s", "faint", "middle")
    for number, row in enumerate(operation.rows):
        y = begin + _ROW * number
        yield _text(left - 12, y + 17, row.member or "(all)", "", "end")
        for span in row.spans:
            yield from _bar(row, span, left + span.begin_s * scale, y + 5, max(1.5, span.seconds * scale), colors)


def _bar(row: Row, span: Span, x: float, y: float, width: float, colors: dict[str, str]) -> Iterator[str]:
    color = _FAILED if span.state == "failed" else colors[span.step]
    style = ' class="open"' if span.state == "unfinished" else ""
    label = f"{span.step} {span.seconds:.2f} s" + ("" if span.state == "done" else f", {span.state}")
    yield f'<rect{style} x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_BAR}" rx="2" fill="{color}">'
    yield f"<title>{_escaped(row.member or 'all')}: {_escaped(label)}</title></rect>"
    if width > _LETTER * len(label) + 8:
        yield f'<text x="{x + 4:.1f}" y="{y + 12:.1f}" style="fill:#fff">{_escaped(label)}</text>'


def _ticks(seconds: float) -> Iterator[float]:
    """Round seconds, about eight of them."""
    rough = max(seconds, 1e-3) / 8
    power = 10 ** math.floor(math.log10(rough))
    step = next(n * power for n in (1, 2, 5, 10) if n * power >= rough)
    for number in range(int(seconds / step) + 1):
        yield round(number * step, 6)


def _per_line(colors: dict[str, str]) -> int:
    longest = max((len(step) for step in colors), default=1)
    return max(1, int((_WIDTH - 2 * _MARGIN) / (_LETTER * longest + 34)))


def _legend(colors: dict[str, str], top: float) -> Iterator[str]:
    per_line = _per_line(colors)
    cell = (_WIDTH - 2 * _MARGIN) / per_line
    for number, (step, color) in enumerate(colors.items()):
        x, y = _MARGIN + cell * (number % per_line), top + 20 * (number // per_line)
        yield f'<rect x="{x:.1f}" y="{y:.1f}" width="12" height="12" rx="2" fill="{color}"/>'
        yield _text(x + 18, y + 10.5, step)


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" xml:space="preserve">{_escaped(text)}</text>'


def _escaped(text: str) -> str:
    return escape(_NO_XML.sub("", text))
