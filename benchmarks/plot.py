"""A line chart on two logarithmic axes as an SVG text, readable on light and dark backgrounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 170, 46, 52
COLOURS = ("#2f81f7", "#d9730d", "#2da44e", "#a371f7")
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#57606a}.grid{stroke:#57606a;stroke-opacity:.25}"
    "@media(prefers-color-scheme:dark){text{fill:#adbac7}.grid{stroke:#adbac7}}"
)
_SMALL = "⁰¹²³⁴⁵⁶⁷⁸⁹"

Line = Sequence[tuple[float, float]]
"""Points (x, y), both above 0."""


def chart(title: str, x_name: str, y_name: str, lines: Mapping[str, Line]) -> str:
    """The SVG of `lines`, each with its name at its right end. Axes span whole powers of ten."""
    points = [point for line in lines.values() for point in line]
    across = _Axis([x for x, _ in points], LEFT, WIDTH - RIGHT)
    up = _Axis([y for _, y in points], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        _text(LEFT, 22, title),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_name, anchor="middle"),
        _text(LEFT - 8, TOP - 8, y_name, anchor="end"),
        *_grid(across, up),
    ]
    for colour, (name, line) in zip(COLOURS, lines.items(), strict=False):
        parts += _drawn(colour, name, [(across.place(x), up.place(y)) for x, y in line])
    return "\n".join([*parts, "</svg>", ""])


class _Axis:
    """Powers of ten, laid out between two places of the picture."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = floor(log10(min(values))), ceil(log10(max(values)))
        self.powers = range(low, max(high, low + 1) + 1)
        self._start, self._step = start, (end - start) / (len(self.powers) - 1)

    def place(self, value: float) -> float:
        return self._start + (log10(value) - self.powers[0]) * self._step


def _grid(across: _Axis, up: _Axis) -> Iterator[str]:
    for power in across.powers:
        x = across.place(10.0**power)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        yield _text(x, HEIGHT - BOTTOM + 18, _power(power), anchor="middle")
    for power in up.powers:
        y = up.place(10.0**power)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield _text(LEFT - 8, y + 4, _power(power), anchor="end")


def _drawn(colour: str, name: str, places: Line) -> Iterator[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
    yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places)
    x, y = places[-1]
    yield _text(x + 8, y + 4, name)


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _power(power: int) -> str:
    digits = "".join(_SMALL[int(digit)] for digit in str(abs(power)))
    return f"10{'⁻' if power < 0 else ''}{digits}"
