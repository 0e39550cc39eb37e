"""Two small charts as inline SVG, in the page's own colours, light or dark."""

import html
import math
from collections.abc import Callable, Mapping, Sequence

WIDTH, HEIGHT = 420, 220
LEFT, RIGHT, TOP, BOTTOM = 58, 20, 24, 36
COLOURS = ("--a", "--b", "--c", "--d")
DASHES = ("none", "5 3", "2 2", "8 3 2 3")
LETTER = 5.6  # mean width of a letter of a name
LOGARITHMIC = 30.0  # ratio of values beyond which an axis is logarithmic


def lines(curves: Mapping[str, Sequence[Sequence[float]]], label: str) -> str:
    """Curves of (x, y) points by name, in one frame.

    The y-axis is logarithmic where the values are positive and go over orders of magnitude.
    """
    points = [p for curve in curves.values() for p in curve if math.isfinite(p[1])]
    if not points:
        return ""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    power = min(ys) > 0 and max(ys) / min(ys) > LOGARITHMIC
    height: Callable[[float], float] = math.log10 if power else float
    x_range, y_range = (0.0, max(xs)), _padded(height(min(ys)), height(max(ys)))
    ticks = _ticks(*x_range), _ticks(*y_range)
    body = [_frame(*ticks, x_range, y_range, "step", "", y_power=power)]
    at = float(LEFT)
    for index, (name, curve) in enumerate(curves.items()):
        colour, dash = COLOURS[index % 4], DASHES[index % 4]
        drawn = [
            f"{_x(x, x_range):.1f},{_y(height(y), y_range):.1f}"
            for x, y in curve
            if math.isfinite(y)
        ]
        path = " ".join(drawn)
        style = f"stroke:var({colour});stroke-dasharray:{dash}"
        body.append(f'<polyline class="line" style="{style}" points="{path}"/>')
        if len(drawn) == 1:  # which a line does not show
            x, _, y = drawn[0].partition(",")
            body.append(f'<circle cx="{x}" cy="{y}" r="3" style="fill:var({colour})"/>')
        body.append(
            f'<line class="line" style="{style}" x1="{at:.0f}" y1="10" x2="{at + 22:.0f}" y2="10"/>'
        )
        body.append(f'<text class="name" x="{at + 28:.0f}" y="14">{html.escape(name)}</text>')
        at += 28 + LETTER * len(name) + 18
    return _svg(label, body)


def scatter(points: Mapping[str, tuple[float, float]], x_name: str, y_name: str) -> str:
    """Named points of positive numbers, by logarithmic axes."""
    xs, ys = zip(*points.values(), strict=True)
    x_range, y_range = _decades(xs), _decades(ys)
    x_ticks, y_ticks = (list(range(first, last + 1)) for first, last in (x_range, y_range))
    body = [_frame(x_ticks, y_ticks, x_range, y_range, x_name, y_name, x_power=True, y_power=True)]
    for name, (x, y) in points.items():
        px, py = _x(math.log10(x), x_range), _y(math.log10(y), y_range)
        right = px > WIDTH * 0.68
        anchor, dx = ("end", -8) if right else ("start", 8)
        body.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" style="fill:var(--a)"/>')
        body.append(
            f'<text class="name" x="{px + dx:.1f}" y="{py + 4:.1f}" text-anchor="{anchor}">'
            f"{html.escape(name)}</text>"
        )
    summary = "; ".join(f"{name}: {x:.3g}, {y:.3g}" for name, (x, y) in points.items())
    return _svg(f"{y_name} by {x_name}. {summary}", body)


def _svg(label: str, body: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}">'
        f"{''.join(body)}</svg>"
    )


def _frame(
    x_ticks, y_ticks, x_range, y_range, x_name, y_name, *, x_power=False, y_power=False
) -> str:
    """The axes, a few values of each, and their names."""
    bottom = HEIGHT - BOTTOM
    parts = [f'<path class="axis" d="M{LEFT},{TOP} V{bottom} H{WIDTH - RIGHT}"/>']
    for tick in x_ticks:
        text = _short(10**tick if x_power else tick)
        at = f'x="{_x(tick, x_range):.1f}" y="{bottom + 14}"'
        parts.append(f'<text {at} text-anchor="middle">{text}</text>')
    for tick in y_ticks:
        y, text = _y(tick, y_range), _short(10**tick if y_power else tick)
        parts.append(f'<path class="axis" d="M{LEFT},{y:.1f} H{WIDTH - RIGHT}" opacity=".5"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{html.escape(x_name)}</text>'
    )
    parts.append(f'<text x="{LEFT}" y="14">{html.escape(y_name)}</text>')
    return "".join(parts)


def _short(value: float) -> str:
    text = f"{value:.3g}"
    return f"{value:.0f}" if "e+" in text and value < 1e6 else text


def _x(value: float, limits: tuple[float, float]) -> float:
    return LEFT + (value - limits[0]) / (limits[1] - limits[0]) * (WIDTH - LEFT - RIGHT)


def _y(value: float, limits: tuple[float, float]) -> float:
    share = (value - limits[0]) / (limits[1] - limits[0])
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _padded(low: float, high: float) -> tuple[float, float]:
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten around positive values."""
    low, high = (math.log10(max(v, 1e-12)) for v in (min(values), max(values)))
    first, last = math.floor(low), math.ceil(high)
    return first, max(last, first + 1)


def _ticks(low: float, high: float, aim: int = 4) -> list[float]:
    """Round values from low to high, about `aim` of them."""
    rough = (high - low) / aim
    unit = 10 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step) + 1)]
