"""The report's pictures: SVG written as text, so that a page needs no script and no image file.

Each picture also stands alone as a file: it brings its own fonts, ground and dark colours. Every
text in it passes through `said`, which leaves nothing that XML or HTML could read as markup. The
one exception, a tuning's picture, is a PNG: it stands on no page.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from .phrases import WORDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FONTS = (
    'system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Helvetica Neue",Arial,'
    '"PingFang SC","Microsoft YaHei","Noto Sans CJK SC","Noto Sans SC",sans-serif'
)

# Okabe & Ito (2008) without black and yellow, and the olive of Paul Tol's "muted" set: told apart
# with any colour vision, and visible on white as on near-black.
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#999933")
GREY = "#8a8f99"

MOST_CLASSES = 100
"""A confusion picture of more classes shows the largest ones."""
HOVER_CHARACTERS = 120
"""Of a document's text, in the map."""

# Dark only on a screen: paper stays white. The page may set --ground to its own.
STYLE = f"""<style>
.picture{{--ground:#fff;color:#20242e;font-family:{FONTS}}}
.picture text{{fill:currentColor}}
.picture .ground{{fill:var(--ground)}}
.picture .faint{{fill-opacity:.66}}
.picture .zh{{display:none}}
:root[data-lang=zh] .picture .zh{{display:inline}}
:root[data-lang=zh] .picture .en{{display:none}}
.picture .deep{{fill:#fff}}
.picture .right{{fill:#1f5fa8}}
.picture .wrong{{fill:#b3440c}}
.picture .halo{{paint-order:stroke;stroke:var(--ground);stroke-width:4px;stroke-linejoin:round;
pointer-events:none}}
.picture circle:hover{{stroke:currentColor;stroke-width:2px;fill-opacity:1}}
@media screen and (prefers-color-scheme:dark){{
:root:not([data-theme=light]) .picture,.picture:root{{--ground:#15171d;color:#e3e5ec}}
:root:not([data-theme=light]) .picture .right,.picture:root .right{{fill:#3f83d1}}
:root:not([data-theme=light]) .picture .wrong,.picture:root .wrong{{fill:#d2622a}}
}}
@media screen{{
:root[data-theme=dark] .picture{{--ground:#15171d;color:#e3e5ec}}
:root[data-theme=dark] .picture .right{{fill:#3f83d1}}
:root[data-theme=dark] .picture .wrong{{fill:#d2622a}}
}}
</style>"""

# What XML 1.0 forbids or discourages, and characters that reorder the text after them.
UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
LONE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Point:
    """One document on the map, anywhere in the plane."""

    x: float
    y: float
    cluster_id: str
    label: str | None
    text: str
    night: str = ""


@dataclass(frozen=True)
class Tried:
    """One trial of a tuning: its score, of its last epoch where it was pruned, and its values."""

    number: int
    score: float
    pruned: bool
    values: Mapping[str, Any]


def clean(text: str) -> str:
    """Text that any encoder, browser and XML reader takes: no controls, overrides, surrogates."""
    return UNFIT.sub("", LONE.sub("\ufffd", text))


def said(text: object) -> str:
    """A value as clean text, escaped for HTML and SVG, in an element or a quoted attribute."""
    return escape(clean(str(text)))


def cut(text: str, characters: int) -> str:
    """At most so many characters, on one line; an ellipsis tells that there was more."""
    # Only the head is looked at: a document may have a million characters.
    line = " ".join(clean(text[: 4 * characters + 64]).split())
    short = len(line) <= characters and len(text) <= 4 * characters + 64
    return line if short else line[: characters - 1].rstrip() + "…"


def in_both(
    keys: Sequence[str], attributes: str, kind: str = "", values: Mapping[str, Any] | None = None
) -> str:
    """A text in both languages, of which the page shows one, and a file on its own English.

    Args: keys of phrases.py; the element's attributes and class; what is filled in.
    """
    found = []
    for place, (name, language) in enumerate((("en", "en"), ("zh", "zh-Hans"))):
        words = "".join(WORDS[key][place].format(**(values or {})) for key in keys)
        classes = f"{name} {kind}".strip()
        found.append(f'<text class="{classes}" lang="{language}" {attributes}>{said(words)}</text>')
    return "".join(found)


def text_width(text: str, size: float) -> float:
    """Roughly how wide a line is set, in the unit of `size`; Chinese characters are square."""
    return size * sum(_ems(one) for one in text)


def _ems(character: str) -> float:
    if unicodedata.combining(character):
        return 0.0
    return 1.0 if unicodedata.east_asian_width(character) in "WF" else 0.6


def _fitted(text: str, size: float, width: float) -> str:
    """The text, cut with an ellipsis where it would be wider than `width`."""
    line = cut(text, 200)
    if text_width(line, size) <= width:
        return line
    while line and text_width(line, size) + size > width:
        line = line[:-1]
    return line.rstrip() + "…"


def _svg(width: float, height: float, body: Iterable[str], about: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="picture" role="img" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
        f'aria-label="{said(about)}">{STYLE}'
        f'<rect class="ground" width="100%" height="100%"/>{"".join(body)}</svg>'
    )


def confusion_picture(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """Which classes are taken for which: one row per true class, one column per predicted one.

    Right answers are blue and wrong ones orange. The shade is the root of the cell's share of its
    row, so that a confusion of one in twenty can be seen. Counts are written up to 20 classes.

    Args: counts, (classes, classes); the classes' names.
    """
    kept = _largest(matrix)
    count = len(kept)
    if not count:
        return _svg(320, 40, ['<text x="8" y="24" font-size="13">no test rows</text>'], "Empty")
    cell = 38 if count <= 10 else 34 if count <= 20 else 16 if count <= 50 else 11
    size = min(13, cell - 2)
    names = [_fitted(labels[index], size, 15 * size) for index in kept]
    longest = max(text_width(name, size) for name in names)
    # Few columns read best slanted; many leave room for upright names only.
    angle, reach = (-45, 0.71) if count <= 20 else (-90, 1.0)
    left, top = longest + 14, reach * longest + 20
    body = _axes(names, [labels[index] for index in kept], cell, size, left, top, angle)
    for row, true in enumerate(kept):
        total = sum(matrix[true])
        for column, predicted in enumerate(kept):
            if number := matrix[true][predicted]:
                about = (
                    f"{cut(labels[true], 80)}, taken for {cut(labels[predicted], 80)}"
                    if true != predicted
                    else f"{cut(labels[true], 80)}, recognised"
                )
                about += f": {number:,} of {total:,} ({number / total:.1%})"
                at = (left + column * cell, top + row * cell)
                body += _cell(at, cell, number, number / total, true == predicted, about)
    edge = count * cell
    notes = ["p_rows", *(["p_largest"] if count < len(labels) else [])]
    given = {"count": count, "all": len(labels)}
    at = f'x="{left:.0f}" y="{top + edge + 20:.0f}" font-size="12"'
    body.append(in_both(notes, at, "faint", given))
    note = "".join(WORDS[one][0].format(**given) for one in notes)
    slant = reach * longest if count <= 20 else 12
    wide = max(left + edge + slant, left + text_width(note, 12))
    return _svg(wide, top + edge + 30, body, f"Confusion of {count} classes")


def _largest(matrix: Sequence[Sequence[int]]) -> list[int]:
    """The classes with the most test rows, in their own order."""
    by_support = sorted(range(len(matrix)), key=lambda index: -sum(matrix[index]))
    return sorted(by_support[:MOST_CLASSES])


def _axes(
    names: list[str],
    whole: list[str],
    cell: int,
    size: int,
    left: float,
    top: float,
    angle: int,
) -> list[str]:
    edge = len(names) * cell
    body = [
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{edge}" height="{edge}" '
        'fill="currentColor" fill-opacity="0.05"/>'
    ]
    for index, name in enumerate(names):
        middle = (index + 0.5) * cell
        hover = f"<title>{said(cut(whole[index], 200))}</title>"
        x, y = left + middle + size * 0.3, top - 6
        body.append(
            f'<text font-size="{size}" text-anchor="end" x="{left - 8:.1f}" '
            f'y="{top + middle + size * 0.35:.1f}">{said(name)}{hover}</text>'
            f'<text font-size="{size}" transform="translate({x:.1f} {y:.1f}) '
            f'rotate({angle})">{said(name)}{hover}</text>'
        )
    return body


def _cell(
    at: tuple[float, float], cell: int, number: int, share: float, right: bool, about: str
) -> list[str]:
    x, y = at
    shade = max(0.08, share**0.5)
    parts = [
        f'<g><title>{said(about)}</title><rect x="{x + 0.5:.1f}" y="{y + 0.5:.1f}" '
        f'width="{cell - 1}" height="{cell - 1}" class="{"right" if right else "wrong"}" '
        f'fill-opacity="{shade:.2f}"/>'
    ]
    if cell >= 30:
        written = str(number) if number < 100_000 else f"{number // 1000}k"
        size = 12 if len(written) < 5 else 10
        deep = ' class="deep"' if shade > 0.6 else ""
        parts.append(
            f'<text{deep} font-size="{size}" text-anchor="middle" x="{x + cell / 2:.1f}" '
            f'y="{y + cell / 2 + 4:.1f}">{written}</text>'
        )
    return [*parts, "</g>"]


def cluster_colours(clusters: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A colour for each of the largest clusters; the others share one grey."""
    by_size = sorted(clusters, key=lambda cluster: -(cluster["size"] or 0))
    colours = {cluster["cluster_id"]: GREY for cluster in clusters}
    colours.update({one["cluster_id"]: hue for one, hue in zip(by_size, PALETTE, strict=False)})
    return colours


def map_picture(points: Sequence[Point], clusters: Sequence[Mapping[str, Any]]) -> str:
    """A dot per document in its cluster's colour; resting on one shows its text.

    Names stand at the middle of their cluster, the largest first; one that would cover another
    is moved a little, or left out.

    Args: points in any scale; rows of `clusters` (cluster_id, name, size).
    """
    width, height, margin = 960.0, 620.0, 24.0
    names = {one["cluster_id"]: str(one["name"]) for one in clusters}
    colours = cluster_colours(clusters)
    groups: dict[str, list[tuple[float, float]]] = {}
    body = []
    placed = _placed(points, width, height, margin)
    # Grey first, so that the large clusters lie on top of it.
    order = sorted(
        range(len(points)), key=lambda n: colours.get(points[n].cluster_id, GREY) != GREY
    )
    for index in order:
        point, (x, y) = points[index], placed[index]
        groups.setdefault(point.cluster_id, []).append((x, y))
        about = f"{cut(names.get(point.cluster_id, point.cluster_id), 60)}"
        about += f" · {cut(point.label, 60)}" if point.label else ""
        # Isolated, so that a right-to-left text does not turn the name before it around.
        text = f"\u2068{said(cut(point.text, HOVER_CHARACTERS))}\u2069"
        body.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" {_dot(colours.get(point.cluster_id, GREY))}>'
            f"<title>{said(about)}\n{text}</title></circle>"
        )
    sizes = {one["cluster_id"]: one["size"] or 0 for one in clusters}
    body += _names_on_map(groups, names, sizes, colours, width)
    return _svg(width, height, body, f"Map of {len(points)} documents")


def _dot(colour: str) -> str:
    """Grey dots are smaller and paler: grey alone is close to pink for some eyes."""
    radius, opacity = (2.4, 0.5) if colour == GREY else (3.4, 0.75)
    return f'r="{radius}" fill="{colour}" fill-opacity="{opacity}"'


def _placed(
    points: Sequence[Point], width: float, height: float, margin: float
) -> list[tuple[float, float]]:
    """Points -> the picture's coordinates, each axis stretched to its edges."""
    if not points:
        return []
    xy = np.nan_to_num(np.array([(one.x, one.y) for one in points], dtype=np.float64))
    low, spread = xy.min(axis=0), np.ptp(xy, axis=0)
    share = np.where(spread > 0, (xy - low) / np.where(spread > 0, spread, 1), 0.5)
    scaled = margin + share * (np.array([width, height]) - 2 * margin)
    return [(x, y) for x, y in scaled.tolist()]


def _names_on_map(
    groups: Mapping[str, list[tuple[float, float]]],
    names: Mapping[str, str],
    sizes: Mapping[str, int],
    colours: Mapping[str, str],
    width: float,
) -> list[str]:
    taken: list[tuple[float, float, float, float]] = []
    body = []
    # Unassigned documents are everywhere and have no name.
    named = [one for one in groups if one in names]
    for cluster in sorted(named, key=lambda one: (-sizes.get(one, 0), one)):
        name = _fitted(names[cluster], 13, 200)
        half = text_width(name, 13) / 2 + 4
        x = median(at[0] for at in groups[cluster])
        y = median(at[1] for at in groups[cluster])
        x = min(max(x, half), width - half)
        for shift in (0, -20, 20, -40, 40):
            box = (x - half, y + shift - 14, x + half, y + shift + 5)
            if not any(_overlap(box, other) for other in taken):
                taken.append(box)
                weight = 400 if colours.get(cluster, GREY) == GREY else 600
                body.append(
                    f'<text class="halo" font-size="13" font-weight="{weight}" '
                    f'text-anchor="middle" x="{x:.1f}" y="{y + shift:.1f}">{said(name)}</text>'
                )
                break
    return body


def _overlap(one: tuple[float, float, float, float], two: tuple[float, ...]) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]


def stage_bar(seconds: Mapping[str, float]) -> str:
    """How long each stage took, one bar per stage, in the order of the night."""
    longest = max(seconds.values(), default=0.0) or 1.0
    left, bar, row = 92, 380, 24
    body = []
    for index, (stage, taken) in enumerate(seconds.items()):
        y = index * row + 6
        body.append(
            f'<text x="{left - 10}" y="{y + 12}" font-size="13" text-anchor="end">'
            f"{said(_fitted(stage, 13, left - 10))}</text>"
            f'<rect class="right" x="{left}" y="{y}" height="15" rx="2" '
            f'width="{max(1.0, bar * taken / longest):.1f}"/>'
            f'<text class="faint" x="{left + max(1.0, bar * taken / longest) + 8:.1f}" '
            f'y="{y + 12}" font-size="12">{taken:.1f} s</text>'
        )
    return _svg(left + bar + 70, len(seconds) * row + 10, body, "Seconds per stage")


def interval_picture(difference: float, low: float, high: float) -> str:
    """The challenger's lead over the champion with its interval, on a line through zero."""
    reach = 1.15 * max(abs(low), abs(high), abs(difference), 0.001)
    left, right, zero, at = _on_line(reach, low, high, 0.0, difference)
    tone = "right" if low > 0 else "wrong" if high < 0 else "faint"
    body = [
        '<path d="M8 26H428" stroke="currentColor" stroke-opacity="0.3"/>',
        f'<path d="M{zero:.1f} 12V40" stroke="currentColor" stroke-opacity="0.6"/>',
        f'<rect class="{tone}" fill-opacity="0.45" x="{left:.1f}" y="20" height="12" rx="2" '
        f'width="{max(2.0, right - left):.1f}"/>',
        f'<circle class="{tone}" cx="{at:.1f}" cy="26" r="6"/>',
        in_both(["p_champion_better"], 'x="8" y="58" font-size="12"', "faint"),
        in_both(["p_equal"], f'x="{zero:.1f}" y="58" font-size="12" text-anchor="middle"', "faint"),
        in_both(
            ["p_challenger_better"], 'x="428" y="58" font-size="12" text-anchor="end"', "faint"
        ),
    ]
    return _svg(436, 66, body, f"Challenger minus champion: {difference:+.4f}")


def _on_line(reach: float, *values: float) -> list[float]:
    return [8 + 420 * (value + reach) / (2 * reach) for value in values]


def lay_out(vectors: np.ndarray, seed: int = 1) -> np.ndarray:
    """Vectors -> places in the plane, near where similar (t-SNE, van der Maaten & Hinton 2008).

    Fewer than 30 vectors are projected by PCA, since t-SNE makes neighbourhoods of nothing.

    Args: (documents, width), any number and width of them, also equal ones.
    Returns: float32 (documents, 2); the same seed gives the same places on one machine.
    """
    rows = np.nan_to_num(np.asarray(vectors, dtype=np.float32))
    count = len(rows)
    rows = rows.reshape(count, -1) if count else np.zeros((0, 2), np.float32)
    if rows.shape[1] < 2:
        rows = np.pad(rows, ((0, 0), (0, 2 - rows.shape[1])))
    rows = rows - rows.mean(axis=0) if count else rows
    if count < 2 or np.abs(rows).max() < 1e-6:
        return np.zeros((count, 2), np.float32)
    if count < 30:
        left, scale, _ = np.linalg.svd(rows, full_matrices=False)
        return (left[:, :2] * scale[:2]).astype(np.float32)
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    mapper = TSNE(
        perplexity=min(30.0, (count - 1) / 3), init="pca", max_iter=600, random_state=seed
    )
    # On one thread: several, on a busy machine, waited for one another and took ten times longer.
    with threadpool_limits(1):
        return mapper.fit_transform(rows).astype(np.float32)


def search_picture(
    trials: Sequence[Tried], metric: str, logs: Collection[str], title: str
) -> bytes:
    """A tuning as PNG: the score of every trial with the best so far; then value against score.

    Pruned trials are hollow and grey; those below the picture's ground lie on it, and above its top
    under it.

    Args: trials by number, at least one of them finished; the metric's name (`log_loss` is better
    when lower); keys whose axis is logarithmic.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    keys = list(trials[0].values)
    columns, rows = min(4, max(2, len(keys))), -(-len(keys) // 4)
    figure = Figure(figsize=(11, 3.4 + 2.5 * rows), dpi=110, layout="constrained")
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[1.4, *[1.0] * rows])
    figure.suptitle(cut(title, 110), fontsize=12, x=0.01, ha="left")
    low, high = _score_span(trials)
    shown = [(one, min(max(one.score, low), high)) for one in trials]
    whole = figure.add_subplot(grid[0, :])
    for one, score in shown:
        _mark(whole, one.number, score, one.pruned)
    _best_so_far(whole, trials, metric)
    whole.set(xlabel="trial", ylabel=metric.replace("_", "-"), ylim=_with_margin(low, high))
    whole.xaxis.set_major_locator(MaxNLocator(integer=True))
    for index, key in enumerate(keys):
        axes = figure.add_subplot(grid[1 + index // columns, index % columns])
        _value_panel(axes, shown, key, key in logs)
        axes.set(title=key, ylim=_with_margin(low, high))
        axes.tick_params(labelleft=index % columns == 0)
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def _score_span(trials: Sequence[Tried]) -> tuple[float, float]:
    # A trial pruned at once may lie far off, and would squeeze all that matters into a line.
    scores = [one.score for one in trials if not one.pruned] or [one.score for one in trials]
    low, high = min(scores), max(scores)
    return (low, high) if high > low else (low - 0.01, high + 0.01)


def _with_margin(low: float, high: float) -> tuple[float, float]:
    return low - 0.08 * (high - low), high + 0.08 * (high - low)


def _mark(axes: Axes, x: float, score: float, pruned: bool) -> None:
    face, edge = ("none", GREY) if pruned else (PALETTE[0], "white")
    axes.plot([x], [score], "o", markersize=6, color=face, markeredgecolor=edge, zorder=3)


def _best_so_far(axes: Axes, trials: Sequence[Tried], metric: str) -> None:
    finished = [one for one in trials if not one.pruned]
    better = np.minimum if metric == "log_loss" else np.maximum
    best = better.accumulate([one.score for one in finished])
    numbers = [one.number for one in finished]
    axes.step(numbers, best, where="post", color=PALETTE[4], label="best so far")
    axes.plot([], [], "o", color=PALETTE[0], label="finished")
    axes.plot([], [], "o", color="none", markeredgecolor=GREY, label="pruned")
    # Above the ground, where no trial can lie.
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, fontsize=9, ncols=3)


def _value_panel(
    axes: Axes, shown: Sequence[tuple[Tried, float]], key: str, logarithmic: bool
) -> None:
    values = [one.values[key] for one, _ in shown]
    names = None
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in values):
        names = sorted({str(one) for one in values})
        values = [names.index(str(one)) for one in values]
    elif len(set(values)) <= 4 and 2 * len(set(values)) <= len(values):
        # Few numbers that return are told apart as names are: 64, 128, 256 at equal distances.
        numbers = sorted(set(values))
        names = [f"{one:g}" for one in numbers]
        values = [numbers.index(one) for one in values]
    for (one, score), value in zip(shown, values, strict=True):
        _mark(axes, value, score, one.pruned)
    if names is not None:
        axes.set_xticks(range(len(names)), [cut(name, 14) for name in names])
        axes.set_xlim(-0.5, len(names) - 0.5)
    elif logarithmic:
        from matplotlib.ticker import LogLocator, NullFormatter

        axes.set_xscale("log")
        # Left alone, several powers of ten are written over one another.
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
