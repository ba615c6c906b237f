"""What people's labels did: a sentence for the report, and the figures it is made of."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nightshift.journal import is_person
from nightshift.wording import Both, both, counts, share, words_of

from .evaluate import Evaluated
from .stage import Night
from .train import Trained

MOST_NAMES = 3
"""People that the sentence names."""


def reviewed(night: Night, trained: Trained, evaluated: Evaluated) -> dict[str, Any]:
    """Labels by people since the training before tonight's, and what the scores did.

    Returns: documents, by (person -> documents), trained; and where both models answered the same
    test rows: rows, and accuracy `before` and `after`. Empty without such labels.
    """
    since = night.before.get("basis", {}).get("night", 0)
    old = [row["night"] for row in night.lake.nights() if row["number"] <= since]
    later = ~pc.field("night").isin(pa.array(old, pa.string()))
    rows = night.lake.read("labels", ["doc_id", "by"], later).to_pylist()
    by = {row["doc_id"]: row["by"] for row in rows if is_person(row["by"])}
    if not by:
        return {}
    found: dict[str, Any] = {
        "documents": len(by),
        "by": dict(Counter(by.values()).most_common()),
        "trained": trained.challenger is not None and night.turn is None,
    }
    if found["trained"] and evaluated.champion and evaluated.challenger:
        found["rows"] = evaluated.challenger["rows"]
        found["before"] = evaluated.champion["accuracy"]
        found["after"] = evaluated.challenger["accuracy"]
    return found


def sentences(found: dict[str, Any]) -> list[Both]:
    """The same in words, as a note of the report; none where nobody labelled."""
    if not found:
        return []
    names = [f"{name} {count}" for name, count in found["by"].items()]
    shown = ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")
    many = counts("document", found["documents"])
    people = words_of("people_labelled", documents=many, names=shown)
    if not found["trained"]:
        return [words_of("people_wait", people=people)]
    if "after" not in found:
        return [words_of("people_learned", people=people)]
    change = round(found["after"] - found["before"], 3)
    key = "points_more" if change > 0 else "points_fewer"
    moved = both(lambda say: say(key, points=say.points(change)) if change else say("as_before"))
    return [
        words_of(
            "people_helped", people=people, moved=moved, rows=counts("test row", found["rows"]),
            before=share(found["before"]), after=share(found["after"]),
        )
    ]  # fmt: skip
