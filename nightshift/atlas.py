"""What the page's interactive map is drawn from: numbers packed, texts one to a line.

Texts stand in the page as text, escaped like any other and never inside a script: whatever a
document says stays a document. Coordinates are 16 bits; a text is cut so that all of them together
stay within a budget, however many there are.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from .identity import UNASSIGNED
from .pictures import GREY, PALETTE, Point, cut, said

BUDGET = 8_000_000
"""Bytes that all texts of the map take together."""
MOST_BYTES, LEAST_BYTES = 360, 60
"""Of one text."""


def atlas(
    points: Sequence[Point], clusters: Sequence[Mapping[str, Any]], tonight: str
) -> dict[str, Any]:
    """Points for the page: `data` (JSON for a script element), `texts` and names (escaped lines).

    Args: points anywhere in the plane; rows of `clusters`; tonight's name.
    """
    names = {one["cluster_id"]: str(one["name"]) for one in clusters}
    of_cluster = [one.cluster_id for one in points]
    of_label = [one.label or "" for one in points]
    of_night = [one.night for one in points]
    sides = {
        "cluster": _ordered(of_cluster, last=UNASSIGNED),
        "label": _ordered(of_label, last=""),
        "night": list(dict.fromkeys(of_night)),
    }
    # Nights come in the order of the points' own list, the oldest first.
    sides["night"].sort(key=lambda one: (one == tonight, one))
    numbers = {
        name: np.array([order[one] for one in of], np.uint16)
        for name, of in (("cluster", of_cluster), ("label", of_label), ("night", of_night))
        for order in ({one: place for place, one in enumerate(sides[name])},)
    }
    data = {
        "n": len(points),
        "xy": _packed(_places(points)),
        **{name: _packed(values) for name, values in numbers.items()},
        "palette": list(PALETTE),
        "grey": GREY,
        "tonight": sides["night"].index(tonight) if tonight in sides["night"] else -1,
        "loose": sides["cluster"].index(UNASSIGNED) if UNASSIGNED in sides["cluster"] else -1,
    }
    most = max(LEAST_BYTES, min(MOST_BYTES, BUDGET // max(1, len(points))))
    return {
        "data": script_json(data),
        "texts": lines(bounded(one.text, most) for one in points),
        "clusters": lines(cut(names.get(one, one), 80) for one in sides["cluster"]),
        "labels": lines(cut(one, 80) for one in sides["label"]),
        "nights": lines(sides["night"]),
        "points": len(points),
    }


def _ordered(of: Sequence[str], last: str) -> list[str]:
    """Different names, the most frequent first: these have the colours."""
    counts = Counter(of)
    return sorted(counts, key=lambda one: (one == last, -counts[one], one))


def _places(points: Sequence[Point]) -> np.ndarray:
    """x and y in turn, each axis from 0 to 65535, uint16."""
    if not points:
        return np.empty(0, np.uint16)
    xy = np.nan_to_num(np.array([(one.x, one.y) for one in points], np.float64), posinf=0, neginf=0)
    low, spread = xy.min(axis=0), np.ptp(xy, axis=0)
    share = np.where(spread > 0, (xy - low) / np.where(spread > 0, spread, 1), 0.5)
    return np.round(65535 * share).astype(np.uint16).ravel()


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(values.astype("<u2").tobytes()).decode("ascii")


def bounded(text: str, most: int) -> str:
    """One line of at most so many bytes as the page writes it; an ellipsis tells of more."""
    line = cut(text, most)
    while (size := len(said(line).encode())) > most and len(line) > 1:
        # What is escaped, or Chinese, takes several bytes a character.
        line = line[: max(1, len(line) * most // size - 1)].rstrip("…").rstrip() + "…"
    return line


def lines(texts: Any) -> Markup:
    """Texts as escaped lines; none has a line end inside."""
    return Markup("\n".join(said(" ".join(one.split())) for one in texts))


def script_json(value: Any) -> Markup:
    """JSON that may stand in a script element: nothing in it ends one, or a line of a script."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    for one in "<>&":
        text = text.replace(one, f"\\u{ord(one):04x}")
    return Markup(text)
