"""The pedigree of clusters: a picture of how documents flowed between them, night by night.

Nights stand from left to right, a bar for each cluster in each, as high as it is large. Bands are
documents that stayed or moved; a wedge at a bar's left are its new ones. It is SVG made by hand, in
the manner of pictures.py and in the colours of its map.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from .identity import UNASSIGNED
from .ids import index_in
from .pictures import GREY, _fitted, _svg, cluster_colours, cut, in_both, said, text_width
from .wording import Both, Say, both, counts, words_of

MOST_NIGHTS = 8
MOST_CLUSTERS = 20
"""Clusters with a bar of their own: the largest in any of the nights drawn."""
OTHERS = "others"
"""The bar of all smaller ones."""

Move = tuple[str | None, str]
"""From which cluster to which; None for a document that was not there before."""
Moves = Mapping[str, Mapping[Move, int]]
"""Documents by night and move."""

TOP, LEFT, BAR = 58.0, 30.0, 16.0
FULL = 430.0
"""Height of all documents of the fullest night, in pixels."""
SLOT, GAP = 13.0, 6.0
"""Least height that a bar takes, so that names beside the last ones do not touch; and between."""
LABEL, WEDGE = 230.0, 15.0
LEAST = 700.0
"""Width that the legend takes."""

# Drawn around a bar's middle, 8 pixels wide.
MARKS = {
    "born": "M0 -3.5V3.5M-3.5 0H3.5",
    "split": "M-4 0H-1L3.5 -3.5M-1 0L3.5 3.5",
    "merged": "M4 0H1L-3.5 -3.5M1 0L-3.5 3.5",
    "ended": "M-3 -3L3 3M-3 3L3 -3",
}

STYLE = """<style>
.pedigree .band{fill-opacity:.3}.pedigree .band:hover,.pedigree .new:hover{fill-opacity:.75}
.pedigree .new{fill-opacity:.55}
.pedigree .mark{fill:none;stroke:currentColor;stroke-width:1.7;stroke-linecap:round}
.pedigree .on{stroke:#fff}
.pedigree .loose{fill:var(--ground);stroke-dasharray:3 2}
</style>"""


@dataclass(frozen=True)
class Bar:
    """One cluster in one night, in pixels."""

    x: float
    y: float
    height: float
    size: int

    @property
    def middle(self) -> float:
        """Where its name and its mark stand."""
        return self.y + self.height / 2


@dataclass(frozen=True)
class Plan:
    """What is drawn: clusters from top to bottom, and what each night knows of them."""

    nights: list[str]
    order: list[str]
    names: dict[str, Both | str]
    colours: dict[str, str]
    sizes: dict[str, dict[str, int]]
    """By night and cluster, none of them 0."""
    flows: dict[str, Counter[Move]]
    """By night: moves, and those who stayed."""
    events: dict[str, dict[str, Mapping[str, Any]]]
    """Rows of `clusters` by night and cluster."""


def moves(changes: pa.Table, nights: Sequence[str]) -> dict[str, Counter[Move]]:
    """How many documents went where, by night.

    Args: night, doc_id and cluster_id of `assignments`; the nights that count, in their order.
    """
    parts = [
        (index_in(one["night"], pa.array(nights, pa.string())), one["doc_id"], one["cluster_id"])
        for one in changes.to_batches()
    ]
    if not parts:
        return {}
    place = np.concatenate([one for one, _, _ in parts])
    counts = np.flatnonzero(place >= 0)
    if not len(counts):
        return {}
    place = place[counts]
    ids, named = (
        pa.concat_arrays([one[column] for one in parts]).take(pa.array(counts)) for column in (1, 2)
    )
    named = named.dictionary_encode()
    clusters = named.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    # Most came in the first night and stayed: who moved is looked up, not all are numbered.
    documents = index_in(ids, ids.filter(pa.array(place > place.min())).unique())
    there = np.flatnonzero(documents >= 0)
    # A document's changes one behind the other, in the order of the nights.
    order = there[np.lexsort((place[there], documents[there]))]
    same = documents[order][1:] == documents[order][:-1]
    came = np.full(len(place), -1)
    came[order[1:][same]] = clusters[order[:-1][same]]
    size = len(named.dictionary) + 1
    keys, many = np.unique((place * size + came + 1) * size + clusters, return_counts=True)
    names, found = named.dictionary.to_pylist(), dict[str, Counter[Move]]()
    for key, documents_moved in zip(keys.tolist(), many.tolist(), strict=True):
        source, target = key // size % size - 1, key % size
        move = (None if source < 0 else names[source], names[target])
        found.setdefault(str(nights[key // size // size]), Counter())[move] = documents_moved
    return found


def unassigned(nights: Sequence[str], moved: Moves) -> dict[str, int]:
    """Documents in no cluster, by night.

    Args: all nights, oldest first; their moves.
    """
    count, found = 0, {}
    for night in nights:
        for (source, target), documents in moved.get(night, {}).items():
            count += documents * ((target == UNASSIGNED) - (source == UNASSIGNED))
        found[night] = count
    return found


def pedigree_picture(
    nights: Sequence[str], clusters: Sequence[Mapping[str, Any]], moved: Moves
) -> str:
    """The last eight nights of all clusters, as SVG that stands alone or in the report.

    The twenty largest have a bar of their own, the others share one. A split's band comes from its
    parent, an ended cluster's bands go to its heirs. Resting on a part says what it is.

    Args: all nights, oldest first; rows of `clusters`; moves by night.
    """
    plan = _plan(nights, clusters, moved)
    if not plan.order:
        nothing = '<text x="8" y="24" font-size="13">no clusters yet</text>'
        return _svg(320, 40, [nothing], "No clusters yet")
    bars = _bars(plan)
    body = [STYLE, '<g class="pedigree">', *_heads(plan)]
    for before, night in zip(plan.nights, plan.nights[1:], strict=False):
        body += _bands(plan, bars, before, night)
    for night in plan.nights:
        body += [part for key in plan.order for part in _bar(plan, bars, night, key)]
    body += [part for key in plan.order for part in _name(plan, bars, key)]
    bottom = max(bar.y + max(bar.height, SLOT) for bar in bars.values())
    body += [*_legend(bottom + 34), "</g>"]
    width = LEFT + _pitch(plan) * (len(plan.nights) - 1) + BAR + LABEL
    return _svg(max(width, LEAST), bottom + 52, body, f"Clusters over {len(plan.nights)} nights")


# --- what is drawn --------------------------------------------------------------------------


def _plan(nights: Sequence[str], clusters: Sequence[Mapping[str, Any]], moved: Moves) -> Plan:
    shown = list(nights[-MOST_NIGHTS:])
    rows = [row for night in shown for row in clusters if row["night"] == night]
    largest: dict[str, int] = {}
    for row in rows:
        largest[row["cluster_id"]] = max(largest.get(row["cluster_id"], 0), row["size"])
    alive = sorted((one for one in largest if largest[one]), key=lambda one: (-largest[one], one))
    kept = set(alive[:MOST_CLUSTERS])
    sizes = _sizes(shown, rows, kept, unassigned(nights, moved))
    order = [*_order(rows, kept), OTHERS, UNASSIGNED]
    names: dict[str, Both | str] = {
        row["cluster_id"]: str(row["name"]) for row in rows if row["size"]
    }
    names[OTHERS] = words_of("p_smaller", n=len(alive) - len(kept))
    names[UNASSIGNED] = words_of("p_unassigned")
    return Plan(
        nights=shown,
        order=[key for key in order if any(key in one for one in sizes.values())],
        names=names,
        # Tonight's colours are those of the report's map.
        colours=cluster_colours([row for row in rows if shown and row["night"] == shown[-1]]),
        sizes=sizes,
        flows=_flows(shown, sizes, kept, moved),
        events={
            night: {row["cluster_id"]: row for row in rows if row["night"] == night}
            for night in shown
        },
    )


def _sizes(
    nights: list[str], rows: list[Mapping[str, Any]], kept: set[str], loose: Mapping[str, int]
) -> dict[str, dict[str, int]]:
    sizes: dict[str, Counter[str]] = {night: Counter() for night in nights}
    for row in rows:
        sizes[row["night"]][_pooled(row["cluster_id"], kept)] += row["size"]
    for night in nights:
        sizes[night][UNASSIGNED] += loose[night]
    return {night: {key: n for key, n in found.items() if n > 0} for night, found in sizes.items()}


def _pooled(cluster_id: str, kept: set[str]) -> str:
    return cluster_id if cluster_id in kept or cluster_id == UNASSIGNED else OTHERS


def _order(rows: list[Mapping[str, Any]], kept: set[str]) -> list[str]:
    """From top to bottom: the oldest and largest first, a child right under its parent."""
    order: list[str] = []
    nights = list(dict.fromkeys(row["night"] for row in rows))
    for row in sorted(rows, key=lambda row: (nights.index(row["night"]), -row["size"])):
        own = row["cluster_id"]
        if own not in kept or own in order:
            continue
        parents = [one for one in row["parents"] or [] if one in order]
        place = order.index(parents[0]) + 1 if parents else len(order)
        order.insert(place, own)
    return order


def _flows(
    nights: list[str], sizes: dict[str, dict[str, int]], kept: set[str], moved: Moves
) -> dict[str, Counter[Move]]:
    """Moves between what is drawn; those of whom no move tells stayed where they were."""
    found: dict[str, Counter[Move]] = {}
    for before, night in zip([None, *nights], nights, strict=False):
        flow = found[night] = Counter()
        left = Counter[str]()
        for (source, target), documents in moved.get(night, {}).items():
            start = None if source is None else _pooled(source, kept)
            end = _pooled(target, kept)
            if start != end:
                flow[start, end] += documents
                left[start or ""] += documents
        for key, size in sizes[before].items() if before else ():
            if size > left[key] and key in sizes[night]:
                flow[key, key] = min(size - left[key], sizes[night][key])
    return found


# --- where it stands ------------------------------------------------------------------------


def _pitch(plan: Plan) -> float:
    """Pixels from night to night: many lie close, and few not too far apart."""
    return min(220.0, 760.0 / max(len(plan.nights) - 1, 1))


def _bars(plan: Plan) -> dict[tuple[str, str], Bar]:
    fullest = max(sum(one.values()) for one in plan.sizes.values())
    bars: dict[tuple[str, str], Bar] = {}
    for column, night in enumerate(plan.nights):
        y = TOP
        for key in plan.order:
            if size := plan.sizes[night].get(key, 0):
                height = max(1.5, FULL * size / fullest)
                slot = max(height, SLOT)
                x = LEFT + column * _pitch(plan)
                bars[night, key] = Bar(x, y + (slot - height) / 2, height, size)
                y += slot + GAP
    return bars


# --- how it is drawn ------------------------------------------------------------------------


def _heads(plan: Plan) -> list[str]:
    """Above each column its night, and how many documents there were."""
    body: list[str] = []
    for column, night in enumerate(plan.nights):
        x, documents = LEFT + column * _pitch(plan), sum(plan.sizes[night].values())
        body.append(
            f'<text font-size="12" font-weight="600" x="{x:.1f}" y="22">'
            f"{said(_fitted(night, 12, _pitch(plan) - 8))}<title>{said(night)}</title></text>"
            f'<text class="faint" font-size="11" x="{x:.1f}" y="38">{documents:,}</text>'
        )
    return body


def _bands(plan: Plan, bars: dict[tuple[str, str], Bar], before: str, night: str) -> list[str]:
    """Who came from where, between two nights; new ones last, at the foot of their bar."""
    rank = {key: place for place, key in enumerate(plan.order)}
    flow = plan.flows[night]
    used: Counter[tuple[str, str]] = Counter()
    body: list[str] = []
    old = [(source, target) for source, target in flow if source is not None]
    # By source and then target: no two bands of one bar cross at either of its sides.
    for source, target in sorted(old, key=lambda one: (rank[one[0]], rank.get(one[1], 0))):
        start, end = bars.get((before, source)), bars.get((night, target))
        if start is None or end is None:
            continue
        documents = flow[source, target]
        first = _part(start, used, (before, source), documents)
        last = _part(end, used, (night, target), documents)
        about = _about_band(plan, source, target, documents, start.size)
        body.append(_band(start.x + BAR, first, end.x, last, _colour(plan, source), about))
    for target in plan.order:
        end, documents = bars.get((night, target)), flow[None, target]
        if end is not None and documents:
            about = words_of("p_new", n=f"{documents:,}", name=_called(plan, target))
            top, foot = _part(end, used, (night, target), documents)
            body.append(_wedge(end.x, top, foot, _colour(plan, target), about))
    return body


def _part(
    bar: Bar, used: Counter[tuple[str, str]], key: tuple[str, str], documents: int
) -> tuple[float, float]:
    """Top and foot of the next piece of a bar's side."""
    top = min(used[key], bar.size)
    used[key] += documents
    foot = min(used[key], bar.size)
    return bar.y + bar.height * top / bar.size, bar.y + bar.height * foot / bar.size


def _band(
    x: float,
    start: tuple[float, float],
    to: float,
    end: tuple[float, float],
    colour: str,
    about: Both,
) -> str:
    half = (x + to) / 2
    (top, foot), (end_top, end_foot) = start, end
    return (
        f'<path class="band" fill="{colour}" d="M{x:.1f} {top:.1f}C{half:.1f} {top:.1f} '
        f"{half:.1f} {end_top:.1f} {to:.1f} {end_top:.1f}V{end_foot:.1f}C{half:.1f} {end_foot:.1f} "
        f'{half:.1f} {foot:.1f} {x:.1f} {foot:.1f}Z">{_title(about)}</path>'
    )


def _wedge(x: float, top: float, foot: float, colour: str, about: Both) -> str:
    return (
        f'<path class="new" fill="{colour}" d="M{x:.1f} {top:.1f}V{foot:.1f}'
        f'L{x - WEDGE:.1f} {(top + foot) / 2:.1f}Z">{_title(about)}</path>'
    )


def _bar(plan: Plan, bars: dict[tuple[str, str], Bar], night: str, key: str) -> list[str]:
    """The bar with its mark; the one before an end carries that too."""
    bar = bars.get((night, key))
    if bar is None:
        return []
    loose = f' class="loose" stroke="{GREY}"' if key == UNASSIGNED else ""
    body = [
        f'<rect{loose} x="{bar.x:.1f}" y="{bar.y:.1f}" width="{BAR:.0f}" '
        f'height="{bar.height:.1f}" rx="{min(2.0, bar.height / 2):.1f}" '
        f'fill="{_colour(plan, key)}">{_title(_about_bar(plan, night, key, bar.size))}</rect>'
    ]
    row = plan.events[night].get(key)
    if row and row["event"] in MARKS:
        inside = bar.height >= 10
        x = bar.x + BAR / 2 if inside else bar.x - 8
        body.append(_mark(row["event"], x, bar.middle, inside))
    if _ends(plan, night, key):
        body.append(_mark("ended", bar.x + BAR + 8, bar.middle, False))
    return body


def _mark(event: str, x: float, y: float, on_bar: bool) -> str:
    on = " on" if on_bar else ""
    return f'<path class="mark{on}" transform="translate({x:.1f} {y:.1f})" d="{MARKS[event]}"/>'


def _ends(plan: Plan, night: str, key: str) -> Mapping[str, Any] | None:
    """The row that says that the cluster ended in the night after this one."""
    later = plan.nights[plan.nights.index(night) + 1 :]
    row = plan.events[later[0]].get(key) if later else None
    return row if row is not None and row["event"] == "ended" else None


def _name(plan: Plan, bars: dict[tuple[str, str], Bar], key: str) -> list[str]:
    """Once for each cluster, beside its last bar."""
    night = [one for one in plan.nights if (one, key) in bars][-1]
    bar, last = bars[night, key], night == plan.nights[-1]
    ended = _ends(plan, night, key) is not None
    x = bar.x + BAR + (18 if ended else 8)
    room = LABEL - 70 if last else _pitch(plan) - 24
    name = plan.names[key]
    size = f'<tspan class="faint" font-size="11" dx="8">{bar.size:,}</tspan>' if last else ""
    spoken = [("", name)] if isinstance(name, str) else [(" en", name.en), (" zh", name.zh)]
    title = _title(_called(plan, key))
    return [
        f'<text class="halo{language}" font-size="12" x="{x:.1f}" y="{bar.middle + 4:.1f}">'
        f"{said(_fitted(words, 12, room))}{size}{title}</text>"
        for language, words in spoken
    ]


def _title(about: Both | str) -> str:
    """What is said to whoever rests on a part; the page's script changes its language."""
    if isinstance(about, str) or about.en == about.zh:
        return f"<title>{said(about)}</title>"
    en, zh = (said(one).replace("\n", "&#10;") for one in (about.en, about.zh))
    return f'<title data-en="{en}" data-zh="{zh}">{said(about.en)}</title>'


def _legend(y: float) -> list[str]:
    body: list[str] = []
    x = LEFT
    for event in MARKS:
        body.append(_mark(event, x + 4, y - 4, False))
        at = f'font-size="11" x="{x + 14:.1f}" y="{y:.1f}"'
        body.append(in_both([f"event_{event}"], at, "faint"))
        x += 36 + text_width(event, 11)
    body.append(_wedge(x + WEDGE, y - 9, y + 1, GREY, words_of("p_new_documents")))
    at = f'font-size="11" x="{x + WEDGE + 6:.1f}" y="{y:.1f}"'
    return [*body, in_both(["p_pedigree"], at, "faint")]


def _colour(plan: Plan, key: str) -> str:
    return plan.colours.get(key, GREY)


def _called(plan: Plan, key: str) -> Both | str:
    """Its id and name, in a hover title."""
    name = plan.names.get(key, key)
    return name if isinstance(name, Both) else f"{key} {cut(name, 80)}"


def _about_bar(plan: Plan, night: str, key: str, size: int) -> Both:
    return both(lambda say: "\n".join(_lines_of_bar(plan, night, key, size, say)))


def _lines_of_bar(plan: Plan, night: str, key: str, size: int, say: Say) -> list[str]:
    lines = [
        str(say.said(_called(plan, key))),
        say("p_night", night=night, documents=counts("document", size)),
    ]
    row = plan.events[night].get(key)
    if row and row["event"] in ("born", "split", "merged"):
        names = _joined(plan, row["parents"], say)
        event = f"p_{row['event']}"
        lines.append(say(f"{event}_of", parents=names) if names else say(event))
    if end := _ends(plan, night, key):
        heirs = _joined(plan, end["heirs"], say)
        given = {"night": end["night"]}
        lines.append(say("p_ended_of", heirs=heirs, **given) if heirs else say("p_ended", **given))
    return lines


def _joined(plan: Plan, keys: Sequence[str] | None, say: Say) -> str:
    return say.listed([str(say.said(_called(plan, one))) for one in keys or []])


def _about_band(plan: Plan, source: str, target: str, documents: int, size: int) -> Both:
    given = {"n": f"{documents:,}", "of": f"{size:,}"}
    if source == target:
        return words_of("p_stayed", name=_called(plan, source), **given)
    names = {"source": _called(plan, source), "name": _called(plan, target)}
    return words_of("p_went", **names, **given)
