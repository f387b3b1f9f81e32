"""Charts as SVG, by hand: no library is needed, and the files can be reviewed as text."""

import math
from html import escape

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 56, 56
COLOURS = {"LLMProxy": "#0b6e4f", "LLMProxy, Unix socket": "#3fa77c", "nginx": "#7a7a7a",
           "HAProxy": "#4a7fb5", "floor": "#c9c9c9"}
SPARE = ["#0b6e4f", "#7a7a7a", "#4a7fb5", "#b5894a", "#8f5fae"]


def bars(path, title, unit, values):
    """One bar for each name of `values`."""
    top = ceiling(max(values.values()))
    height = HEIGHT - TOP - BOTTOM
    slot = (WIDTH - LEFT - RIGHT) / len(values)
    parts = grid(top, unit)
    for i, (name, value) in enumerate(values.items()):
        tall = height * value / top
        x, y = LEFT + slot * (i + 0.2), TOP + height - tall
        parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{slot * 0.6:.1f}" '
                     f'height="{tall:.1f}" fill="{colour(name, i)}"/>')
        middle = x + slot * 0.3
        parts.append(text(middle, y - 6, short(value), "middle"))
        parts.append(text(middle, HEIGHT - BOTTOM + 20, name, "middle"))
    save(path, title, parts)


def lines(path, title, x_label, y_label, series, log_x=False):
    """One line for each name of `series`, a list of (x, y); x may be words."""
    words = [x for x, _ in next(iter(series.values()))]
    is_words = isinstance(words[0], str)
    at = {x: i for i, x in enumerate(words)} if is_words else None
    position = lambda x: at[x] if is_words else (math.log10(x) if log_x else x)
    xs = sorted({x for points in series.values() for x, _ in points}, key=position)
    first, last = position(xs[0]) if is_words or log_x else 0, position(xs[-1])
    top = ceiling(max(max(y for _, y in points) for points in series.values()))
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x, y):
        share = (position(x) - first) / ((last - first) or 1)
        # A proxy that was faster than the direct connection is noise: it lies on the axis.
        return LEFT + 20 + (width - 40) * share, TOP + height * (1 - max(y, 0) / top)

    parts = grid(top, y_label)
    for x in xs:
        label = x if is_words else short(x)
        parts.append(text(place(x, 0)[0], HEIGHT - BOTTOM + 20, label, "middle"))
    parts.append(text(LEFT + width / 2, HEIGHT - 12, x_label, "middle"))
    for i, (name, points) in enumerate(series.items()):
        places = [place(x, y) for x, y in points]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour(name, i)}" '
                     'stroke-width="2.5"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour(name, i)}"/>'
                  for x, y in places]
        left = LEFT + 10 + i * (width / len(series))
        parts.append(f'<rect x="{left:.1f}" y="36" width="14" height="4" '
                     f'fill="{colour(name, i)}"/>')
        parts.append(text(left + 20, 42, name))
    save(path, title, parts)


def grid(top, unit):
    parts = [text(LEFT - 8, TOP - 14, unit, "end")]
    for i in range(5):
        y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - i / 4)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
                     'stroke="#dddddd"/>')
        parts.append(text(LEFT - 8, y + 4, short(top * i / 4), "end"))
    return parts


def text(x, y, words, anchor="start"):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def save(path, title, parts):
    # The background is drawn, because pages may be dark.
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            'font-family="system-ui, sans-serif" font-size="12" fill="#333333">\n'
            f'<title>{escape(title)}</title>\n'
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n'
            f'<text x="{WIDTH / 2}" y="22" text-anchor="middle" font-size="15" '
            f'font-weight="600">{escape(title)}</text>\n')
    with open(path, "w") as file:
        file.write(head + "\n".join(parts) + "\n</svg>\n")


def ceiling(value):
    """The next round number above a value, divisible into four."""
    if value <= 0:
        return 1
    unit = 10 ** math.floor(math.log10(value))
    return next(m * unit for m in (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10) if m * unit >= value)


def short(value):
    if abs(value) >= 10000:
        return f"{value / 1000:g}k" if value % 1000 == 0 else f"{value / 1000:.1f}k"
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def colour(name, i):
    return COLOURS.get(name, SPARE[i % len(SPARE)])
