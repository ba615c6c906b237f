"""Lines, bands and shaded words: how a training went, whether probabilities mean what they say,
where documents went, why a text is called so.

SVG made by hand, in the manner of pictures.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .pictures import GREY, PALETTE, _fitted, _svg, cut, in_both, said, text_width

if TYPE_CHECKING:
    from .explanations import Explanation, Word

BLUE, ORANGE = PALETTE[0], PALETTE[4]
WIDTH, LEFT, RIGHT = 440.0, 46.0, 12.0

Entry = tuple[str, str, Mapping[str, Any]]
"""Of a legend: its colour, the key of its words, what is filled in."""

Bins = Sequence[Mapping[str, float]]
"""Of confidence, accuracy and rows each, as `evaluation.reliability` gives them."""


@dataclass(frozen=True)
class _Frame:
    """A rectangle in the picture, and the values at its edges."""

    top: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a value stands."""
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        wide = WIDTH - LEFT - RIGHT
        return LEFT + across * wide, self.bottom - up * (self.bottom - self.top)

    def grid(self, marks: Sequence[float], digits: int) -> list[str]:
        """Horizontal lines with their values."""
        body = []
        for mark in marks:
            _, y = self.at(0, mark)
            body.append(
                f'<path d="M{LEFT:.0f} {y:.1f}H{WIDTH - RIGHT:.0f}" stroke="currentColor" '
                f'stroke-opacity="0.14"/><text class="faint" font-size="11" text-anchor="end" '
                f'x="{LEFT - 6:.0f}" y="{y + 4:.1f}">{mark:.{digits}f}</text>'
            )
        return body

    def line(self, points: Sequence[tuple[float, float]], colour: str, dash: str = "") -> list[str]:
        """A line through values, with a dot at each; a dashed one has none."""
        places = [self.at(*point) for point in points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        dots = [] if dash else [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
                                for x, y in places]  # fmt: skip
        return [
            f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dashes}/>',
            *dots,
        ]


def reliability_picture(before: Bins, after: Bins, errors: tuple[float, float]) -> str:
    """Accuracy over confidence, with and without calibration; on the diagonal both are equal.

    A dot is a range of confidence; resting on it tells its rows.

    Args: bins of the probabilities as the network gives them, and calibrated; the calibration error
    of each.
    """
    frame = _Frame(40, 262, (0, 1), (0, 1))
    body = frame.grid([0, 0.25, 0.5, 0.75, 1], 2)
    body += frame.line([(0, 0), (1, 1)], GREY, "4 4")
    legend: list[Entry] = []
    for bins, colour, name, error in (
        (before, ORANGE, "uncalibrated", errors[0]),
        (after, BLUE, "calibrated", errors[1]),
    ):
        line = frame.line([(one["confidence"], one["accuracy"]) for one in bins], colour)
        body += line[:1]
        for one, dot in zip(bins, line[1:], strict=True):
            about = (
                f"{name}: {one['rows']:,.0f} rows, confidence {one['confidence']:.3f}, "
                f"accuracy {one['accuracy']:.3f}"
            )
            body.append(f"<g><title>{said(about)}</title>{dot}</g>")
        legend.append((colour, f"p_{name}", {"error": f"{error:.3f}"}))
    for mark in (0, 0.25, 0.5, 0.75, 1):
        x, _ = frame.at(mark, 0)
        body.append(_below(x, 280, f"{mark:.2f}"))
    body.append(_below_in_both((LEFT + WIDTH - RIGHT) / 2, 300, "p_confidence"))
    return _svg(WIDTH, 308, [*body, *_legend(legend)], "Accuracy by confidence")


def curves_picture(epochs: Sequence[Mapping[str, float]]) -> str:
    """Loss and validation accuracy by epoch; the dashed line is at the epoch that was kept.

    Args: epoch, train_loss, validation_loss and validation_accuracy of each, in order.
    """
    if not epochs:
        return _svg(WIDTH, 40, ['<text x="8" y="24" font-size="13">no epoch</text>'], "No training")
    kept = min(epochs, key=lambda one: _finite(one["validation_loss"]))["epoch"]
    across = (epochs[0]["epoch"], max(epochs[-1]["epoch"], epochs[0]["epoch"] + 1))
    body: list[str] = []
    panels = (
        (40.0, 146.0, [("train_loss", ORANGE), ("validation_loss", BLUE)]),
        (176.0, 262.0, [("validation_accuracy", BLUE)]),
    )
    for top, floor, lines in panels:
        values = [one[name] for name, _ in lines for one in epochs if math.isfinite(one[name])]
        low, high = min(values, default=0.0), max(values, default=1.0)
        low, high = (low, high) if high - low > 1e-9 else (low - 0.05, high + 0.05)
        frame = _Frame(top, floor, across, (low, high))
        digits = 2 if high - low >= 0.1 else 3
        body += frame.grid([low, (low + high) / 2, high], digits)
        body += frame.line([(kept, low), (kept, high)], GREY, "4 4")
        for name, colour in lines:
            points = [(one["epoch"], one[name]) for one in epochs if math.isfinite(one[name])]
            body += frame.line(points, colour) if points else []
    bottom = _Frame(0, 0, across, (0, 1))
    x, _ = bottom.at(kept, 0)
    body.append(_below_in_both((LEFT + WIDTH - RIGHT) / 2, 168, "p_loss"))
    there = min(max(x, LEFT + 50), WIDTH - 60)
    body.append(_below_in_both(there, 280, "p_kept", {"n": f"{kept:.0f}"}))
    ends = {across[0], epochs[-1]["epoch"]} - {kept}
    for one in ends:
        there, _ = bottom.at(one, 0)
        if abs(there - x) > 90:
            body.append(_below(there, 280, f"{one:.0f}"))
    legend: list[Entry] = [(ORANGE, "p_training", {}), (BLUE, "p_validation", {})]
    return _svg(WIDTH, 308, [*body, *_legend(legend)], f"{len(epochs)} epochs of training")


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _below(x: float, y: float, text: str) -> str:
    return (
        f'<text class="faint" font-size="11" text-anchor="middle" x="{x:.1f}" y="{y:.0f}">'
        f"{said(text)}</text>"
    )


def _below_in_both(x: float, y: float, key: str, values: Mapping[str, Any] | None = None) -> str:
    at = f'font-size="11" text-anchor="middle" x="{x:.1f}" y="{y:.0f}"'
    return in_both([key], at, "faint", values)


def _legend(entries: Sequence[Entry]) -> list[str]:
    body = []
    for place, (colour, key, values) in enumerate(entries):
        x = LEFT + place * 195
        body.append(
            f'<rect x="{x:.0f}" y="10" width="12" height="12" rx="2" fill="{colour}"/>'
            + in_both([key], f'font-size="13" x="{x + 18:.0f}" y="21"', "", values)
        )
    return body


def spark_picture(values: Sequence[float]) -> str:
    """A line of probabilities between marks at 0% and 100%, as high as two lines of text."""
    wide, high, left, last = 270.0, 38.0, 34.0, max(1, len(values) - 1)
    top, foot = 6.0, high - 6
    path = "L".join(
        f"{left + (wide - left - 2) * n / last:.1f} {foot - (foot - top) * min(max(one, 0), 1):.1f}"
        for n, one in enumerate(values)
    )
    marks = "".join(
        f'<text x="{left - 5:.0f}" y="{y + 3.5:.1f}" font-size="10" text-anchor="end" '
        f'fill="currentColor" fill-opacity=".66">{mark}</text>'
        f'<path d="M{left:.0f} {y:.1f}H{wide:.0f}" stroke="currentColor" stroke-opacity=".25"/>'
        for mark, y in (("100%", top), ("0%", foot))
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" class="spark" '
        f'viewBox="0 0 {wide:.0f} {high:.0f}" '
        f'width="{wide:.0f}" height="{high:.0f}" aria-hidden="true">{marks}<path d="M{path}" '
        f'fill="none" stroke="{BLUE}" stroke-width="1.6"/></svg>'
    )


# --- where documents went -------------------------------------------------------------------

MOST_FLOWS = 12


def flows_picture(flows: Sequence[Mapping[str, Any]]) -> str:
    """The largest flows of documents from label to label: old labels left, new ones right.

    Args: rows of before, after and documents, the largest first.
    """
    shown = list(flows[:MOST_FLOWS])
    if not shown:
        return _svg(WIDTH, 40, ['<text x="8" y="24" font-size="13">–</text>'], "No flow")
    total = sum(one["documents"] for one in shown)
    left, right, top, full, gap = 210.0, 610.0, 14.0, 24.0 * len(shown) + 60, 12.0
    sides: list[dict[str, tuple[float, float]]] = []
    for side in ("before", "after"):
        sizes: dict[str, int] = {}
        for one in shown:
            sizes[one[side]] = sizes.get(one[side], 0) + one["documents"]
        y, places = top, dict[str, tuple[float, float]]()
        for name, size in sizes.items():
            height = max(3.0, (full - gap * len(sizes)) * size / total)
            places[name] = (y, height)
            y += max(height, 14.0) + gap
        sides.append(places)
    colours = {name: PALETTE[n % len(PALETTE)] for n, name in enumerate(sides[0])}
    used = [dict.fromkeys(side, 0.0) for side in sides]
    body: list[str] = []
    for one in shown:
        ends: list[tuple[float, float]] = []
        for places, name, taken in zip(sides, (one["before"], one["after"]), used, strict=True):
            y, height = places[name]
            mine = sum(row["documents"] for row in shown
                       if row["before" if places is sides[0] else "after"] == name)  # fmt: skip
            part = height * one["documents"] / mine
            ends.append((y + taken[name], part))
            taken[name] += part
        (y, deep), (to, wide) = ends
        half = (left + right) / 2
        about = f"{cut(one['before'], 80)} → {cut(one['after'], 80)}: {one['documents']:,}"
        body.append(
            f'<path fill="{colours[one["before"]]}" fill-opacity="0.4" d="M{left + 12:.1f} {y:.1f}'
            f"C{half:.1f} {y:.1f} {half:.1f} {to:.1f} {right:.1f} {to:.1f}V{to + wide:.1f}"
            f"C{half:.1f} {to + wide:.1f} {half:.1f} {y + deep:.1f} {left + 12:.1f} {y + deep:.1f}Z"
            f'"><title>{said(about)}</title></path>'
        )
    for place, side in enumerate(sides):
        for name, (y, height) in side.items():
            x = right if place else left
            colour = GREY if place else colours[name]
            count = sum(row["documents"] for row in shown
                        if row["after" if place else "before"] == name)  # fmt: skip
            at, anchor = (x + 22, "start") if place else (x - 10, "end")
            body.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="12" height="{height:.1f}" rx="2" '
                f'fill="{colour}"/><text font-size="13" text-anchor="{anchor}" x="{at:.1f}" '
                f'y="{y + height / 2 + 4:.1f}">{said(_fitted(name, 13, 150))} '
                f'<tspan class="faint" font-size="11">{count:,}</tspan></text>'
            )
    bottom = max(y + max(height, 14.0) for side in sides for y, height in side.values())
    return _svg(right + 210, bottom + 14, body, "Flows between labels")


# --- why a text is called so ----------------------------------------------------------------

LINE_WIDTH, LINE_HEIGHT, LETTER = 860.0, 40.0, 15.0
MOST_WORDS = 400
"""Words of a text that are drawn."""


@dataclass(frozen=True)
class _Place:
    """A word in the picture."""

    x: float
    y: float
    width: float
    word: Word


def _set_out(words: Sequence[Word]) -> list[_Place]:
    """Words in lines, as a paragraph; the space between two is what the text has."""
    x, y, places = 16.0, 74.0, list[_Place]()
    for place, word in enumerate(words[:MOST_WORDS]):
        shown = _fitted(word.text, LETTER, LINE_WIDTH - 40)
        width = text_width(shown, LETTER) + 6
        if place and word.start > words[place - 1].end:
            x += 5
        if x + width > LINE_WIDTH and x > 16:
            x, y = 16.0, y + LINE_HEIGHT
        places.append(_Place(x, y, width, word))
        x += width
    return places


def explanation_picture(found: Explanation) -> str:
    """A text whose words are shaded by what they did: blue for the label, orange against it.

    Under each word, a bar for its attention; below all, the label's probability word by word.
    """
    places = _set_out(found.words)
    top = max((abs(one.together) for one in found.words), default=0.0) or 1.0
    most = max((one.attention or 0.0 for one in found.words), default=0.0) or 1.0
    held = ", abstained" if found.abstained else ""
    body = [
        f'<text font-size="19" font-weight="600" x="16" y="32">{said(cut(found.label, 60))}'
        f'<tspan class="faint" font-size="14" font-weight="400" dx="10">{found.probability:.1%}'
        f"{held}</tspan></text>"
    ]
    for one in places:
        share = one.word.together / top
        colour = BLUE if share > 0 else ORANGE
        about = f"{cut(one.word.text, 60)}: {one.word.together:+.1%}"
        about += f", network {one.word.network:+.3f}"
        about += f", linear {one.word.wide:+.3f}" if one.word.wide is not None else ""
        bar = ""
        if one.word.attention is not None:
            wide = max(0.0, (one.width - 4) * one.word.attention / most)
            about += f", attention {one.word.attention:.1%}"
            bar = (
                f'<rect x="{one.x + 2:.1f}" y="{one.y + 9:.1f}" width="{wide:.1f}" height="3" '
                f'fill="{GREY}"/>'
            )
        body.append(
            f"<g><title>{said(about)}</title>"
            f'<rect x="{one.x:.1f}" y="{one.y - 16:.1f}" width="{one.width:.1f}" height="23" '
            f'rx="3" fill="{colour}" fill-opacity="{0.6 * abs(share):.2f}"/>{bar}'
            f'<text font-size="{LETTER:.0f}" x="{one.x + 3:.1f}" y="{one.y:.1f}">'
            f"{said(_fitted(one.word.text, LETTER, LINE_WIDTH - 40))}</text></g>"
        )
    bottom = max((one.y for one in places), default=74.0) + 30
    body += _word_by_word(found, bottom)
    body.append(
        f'<text class="faint" font-size="11" x="16" y="{bottom + 140:.0f}">blue: for the label; '
        "orange: against it; grey bar: attention, which is no reason</text>"
    )
    return _svg(LINE_WIDTH + 16, bottom + 152, body, f"Why {cut(found.label, 60)}")


def _known(found: Explanation) -> list[tuple[int, float]]:
    """Numbers of the words that were followed, and the probability up to each."""
    given = [(n, one.probability) for n, one in enumerate(found.words)]
    return [(n, value) for n, value in given if value is not None]


def _word_by_word(found: Explanation, top: float) -> list[str]:
    """The label's probability from the beginning up to each word."""
    known = [
        (n, one.probability) for n, one in enumerate(found.words) if one.probability is not None
    ]
    if not known:
        return []
    left, floor, height, last = 56.0, top + 110, 100.0, max(1, len(found.words) - 1)
    places = [
        (left + (LINE_WIDTH - left - 16) * n / last, floor - height * value) for n, value in known
    ]
    body = []
    for mark in (0.0, 0.5, 1.0):
        y = floor - height * mark
        body.append(
            f'<path d="M{left:.0f} {y:.1f}H{LINE_WIDTH - 16:.0f}" stroke="currentColor" '
            f'stroke-opacity="0.14"/><text class="faint" font-size="11" text-anchor="end" '
            f'x="{left - 6:.0f}" y="{y + 4:.1f}">{mark:.0%}</text>'
        )
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    body.append(f'<path d="M{path}" fill="none" stroke="{BLUE}" stroke-width="1.8"/>')
    for (x, y), (n, value) in zip(places, known, strict=True):
        about = f"{cut(found.words[n].text, 40)}: {value:.1%}"
        body.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{BLUE}">'
            f"<title>{said(about)}</title></circle>"
        )
    return body


def explanation_png(found: Explanation) -> bytes:
    """The same as PNG, for places that take no SVG."""
    import io
    import warnings

    from matplotlib import font_manager
    from matplotlib.figure import Figure

    there = {one.name for one in font_manager.fontManager.ttflist}
    chinese = ["Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Micro Hei", "PingFang SC",
               "Microsoft YaHei", "Noto Sans CJK JP"]  # fmt: skip
    fonts = ["DejaVu Sans", *(one for one in chinese if one in there)]
    places = _set_out(found.words)
    bottom = max((one.y for one in places), default=74.0) + 30
    figure = Figure(figsize=((LINE_WIDTH + 16) / 100, (bottom + 150) / 100), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, LINE_WIDTH + 16), ylim=(bottom + 150, 0))
    axes.axis("off")
    held = ", abstained" if found.abstained else ""
    plain = {"family": fonts, "parse_math": False}
    axes.text(
        16, 32, f"{cut(found.label, 60)}   {found.probability:.1%}{held}", fontsize=13, **plain
    )
    top = max((abs(one.together) for one in found.words), default=0.0) or 1.0
    for one in places:
        share = one.word.together / top
        axes.text(
            one.x + one.width / 2, one.y, _fitted(one.word.text, LETTER, LINE_WIDTH - 40),
            fontsize=9.5, ha="center", **plain,
            bbox={"facecolor": BLUE if share > 0 else ORANGE, "alpha": 0.6 * abs(share),
                  "edgecolor": "none", "pad": 2},
        )  # fmt: skip
    known = [
        (n, one.probability) for n, one in enumerate(found.words) if one.probability is not None
    ]
    if known:
        share = 110 / (bottom + 150)
        below = figure.add_axes((0.07, 0.25 * share, 0.9, 0.9 * share))
        below.plot([n for n, _ in known], [value for _, value in known], "o-", ms=3, color=BLUE)
        below.set(ylim=(0, 1.02))
        below.grid(alpha=0.25)
        below.spines[["top", "right"]].set_visible(False)
        below.tick_params(labelsize=7)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # A sign that no font here has is drawn as a box; nobody can do more about it.
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(stream, format="png")
    return stream.getvalue()
