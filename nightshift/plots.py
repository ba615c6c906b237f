"""Lines in a frame: how a training went, and whether probabilities mean what they say.

SVG made by hand, in the manner of pictures.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .pictures import GREY, PALETTE, _svg, said

BLUE, ORANGE = PALETTE[0], PALETTE[4]
WIDTH, LEFT, RIGHT = 440.0, 46.0, 12.0

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
    legend = []
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
        legend.append((colour, f"{name}, error {error:.3f}"))
    for mark in (0, 0.25, 0.5, 0.75, 1):
        x, _ = frame.at(mark, 0)
        body.append(_below(x, 280, f"{mark:.2f}"))
    body.append(_below((LEFT + WIDTH - RIGHT) / 2, 300, "confidence; upwards: accuracy"))
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
    body.append(_below((LEFT + WIDTH - RIGHT) / 2, 168, "loss; below: validation accuracy"))
    body.append(_below(min(max(x, LEFT + 50), WIDTH - 60), 280, f"epoch {kept:.0f} was kept"))
    ends = {across[0], epochs[-1]["epoch"]} - {kept}
    for one in ends:
        there, _ = bottom.at(one, 0)
        if abs(there - x) > 90:
            body.append(_below(there, 280, f"{one:.0f}"))
    legend = [(ORANGE, "training"), (BLUE, "validation")]
    return _svg(WIDTH, 308, [*body, *_legend(legend)], f"{len(epochs)} epochs of training")


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _below(x: float, y: float, text: str) -> str:
    return (
        f'<text class="faint" font-size="11" text-anchor="middle" x="{x:.1f}" y="{y:.0f}">'
        f"{said(text)}</text>"
    )


def _legend(entries: Sequence[tuple[str, str]]) -> list[str]:
    body = []
    for place, (colour, text) in enumerate(entries):
        x = LEFT + place * 195
        body.append(
            f'<rect x="{x:.0f}" y="10" width="12" height="12" rx="2" fill="{colour}"/>'
            f'<text font-size="13" x="{x + 18:.0f}" y="21">{said(text)}</text>'
        )
    return body
