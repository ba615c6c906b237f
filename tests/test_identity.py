"""Clusters that live: continued, born, split, merged, ended, on a dozen documents."""

from __future__ import annotations

import numpy as np

from nightshift.identity import Fate, fates, given_back
from nightshift.nearest import UNASSIGNED

TWELVE = [f"d{number:02d}" for number in range(12)]
# Last night: four documents each in c-0001 and c-0002, and two in c-0004; d10 and d11 are new.
BEFORE = {
    **dict.fromkeys(TWELVE[0:4], "c-0001"),
    **dict.fromkeys(TWELVE[4:8], "c-0002"),
    **dict.fromkeys(TWELVE[8:10], "c-0004"),
}
EVER = ["c-0001", "c-0002", "c-0003", "c-0004"]


def places(*rows: int) -> np.ndarray:
    return np.array(rows, np.int64)


def ids(found: list[Fate]) -> list[str]:
    return [one.cluster_id for one in found]


def events(found: list[Fate]) -> list[str]:
    return [one.event for one in found]


def test_clusters_that_share_their_documents_continue_in_whatever_order_they_come() -> None:
    tonight = places(2, 2, 2, 2, 0, 0, 0, 0, 1, 1, 1, 0)
    found, ended = fates(tonight, 3, TWELVE, BEFORE, EVER)
    assert ids(found) == ["c-0002", "c-0004", "c-0001"]
    assert events(found) == ["continued"] * 3
    assert ended == []


def test_a_new_group_is_born_under_an_id_never_given_before() -> None:
    tonight = places(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3)
    found, _ = fates(tonight, 4, TWELVE, BEFORE, [*EVER, "c-0007"])
    assert ids(found) == ["c-0001", "c-0002", "c-0004", "c-0008"]
    assert found[3] == Fate("c-0008", "born")


def test_a_cluster_that_another_took_in_has_ended_and_its_id_stays_unused() -> None:
    # The two documents of c-0004 joined those of c-0002; d10 and d11 are a new group.
    tonight = places(0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2)
    found, ended = fates(tonight, 3, TWELVE, BEFORE, EVER)
    assert ids(found) == ["c-0001", "c-0002", "c-0005"]
    assert found[1] == Fate("c-0002", "merged", parents=["c-0004"])
    assert ended == [Fate("c-0004", "ended", heirs=["c-0002"])]
    # The next night the group falls apart, and neither c-0004 nor c-0003 comes back.
    after = dict(zip(TWELVE, (found[place].cluster_id for place in tonight), strict=True))
    later = places(0, 0, 0, 0, 1, 1, 1, 1, 3, 3, 2, 2)
    again, _ = fates(later, 4, TWELVE, after, [*EVER, *ids(found)])
    assert ids(again) == ["c-0001", "c-0002", "c-0005", "c-0006"]
    assert again[3] == Fate("c-0006", "split", parents=["c-0002"])


def test_of_a_split_cluster_the_larger_part_keeps_the_id() -> None:
    tonight = places(1, 0, 0, 0, 2, 2, 2, 2, 3, 3, 3, 3)
    found, _ = fates(tonight, 4, TWELVE, BEFORE, EVER)
    assert ids(found) == ["c-0001", "c-0005", "c-0002", "c-0004"]
    assert found[1] == Fate("c-0005", "split", parents=["c-0001"])
    assert [events(found)[one] for one in (0, 2, 3)] == ["continued"] * 3


def test_a_cluster_of_mostly_new_documents_is_born_though_a_few_are_old() -> None:
    # One of three is old: less than half. With two of three it would be a split.
    tonight = places(0, 0, 0, 3, 1, 1, 1, 1, 2, 2, 3, 3)
    found, _ = fates(tonight, 4, TWELVE, BEFORE, EVER)
    assert found[3] == Fate("c-0005", "born")
    tonight = places(0, 0, 3, 3, 1, 1, 1, 1, 2, 2, 3, 0)
    assert fates(tonight, 4, TWELVE, BEFORE, EVER)[0][3].event == "split"


def test_a_cluster_that_falls_to_pieces_has_heirs_and_each_piece_its_parent() -> None:
    # Nine documents in three equal parts, each with four old ones of another cluster that goes on.
    before = {f"a{n}": "c-0001" for n in range(9)} | {
        f"b{n}": f"c-000{2 + n // 4}" for n in range(12)
    }
    names = [*(f"a{n}" for n in range(9)), *(f"b{n}" for n in range(12))]
    tonight = np.array([n // 3 for n in range(9)] + [n // 4 for n in range(12)])
    found, ended = fates(tonight, 3, names, before, [])
    assert events(found) == ["continued"] * 3
    assert ended == [Fate("c-0001", "ended", heirs=["c-0002", "c-0003", "c-0004"])]


def test_half_of_the_smaller_clusters_documents_is_a_continuation() -> None:
    # c-0001 x place 0: 2 of min(3, 4); c-0002 x place 1: 2 of 3; c-0004 x place 2: 2 of 2.
    tonight = places(0, 0, 1, 2, 0, 1, 1, 2, 2, 2, 0, 1)
    found, _ = fates(tonight, 3, TWELVE, BEFORE, EVER)
    assert ids(found) == ["c-0001", "c-0002", "c-0004"]


def test_less_than_half_of_the_smaller_clusters_documents_is_none() -> None:
    # The three documents of c-0001 are spread over three places: one is less than half of three.
    before = {name: "c-0001" if name < "d03" else "c-0002" for name in TWELVE}
    tonight = places(0, 1, 2, 0, 0, 1, 1, 2, 2, 2, 2, 2)
    found, ended = fates(tonight, 3, TWELVE, before, EVER)
    assert ids(found) == ["c-0005", "c-0006", "c-0002"]
    assert events(found) == ["split", "split", "continued"]
    assert ended == [Fate("c-0001", "ended", heirs=["c-0005", "c-0006", "c-0002"])]


def test_the_best_matching_is_that_of_all_clusters_together() -> None:
    # Shared: place 0 with c-0001 3 and c-0002 4; place 1 with c-0002 3. Place 0 alone would take
    # c-0002 and leave 4; together 3 + 3 is more.
    before = {name: "c-0001" if name < "d03" else "c-0002" for name in TWELVE[:10]}
    tonight = places(0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1)
    found, _ = fates(tonight, 2, TWELVE, before, EVER)
    assert ids(found) == ["c-0001", "c-0002"]


def test_where_documents_leave_a_tie_the_nearer_centroid_decides() -> None:
    # c-0001 fell into two halves of two: each could be it.
    tonight = places(0, 0, 3, 3, 1, 1, 1, 1, 2, 2, 2, 2)
    near = {"c-0001": np.array([0.1, 0, 0, 0.9])}
    found, _ = fates(tonight, 4, TWELVE, BEFORE, EVER, near)
    assert ids(found) == ["c-0005", "c-0002", "c-0004", "c-0001"]
    # A single document more outweighs any likeness.
    tonight = places(0, 0, 0, 3, 1, 1, 1, 1, 2, 2, 2, 2)
    assert ids(fates(tonight, 4, TWELVE, BEFORE, EVER, near)[0])[0] == "c-0001"


def test_unassigned_documents_belong_to_nobody_before_and_after() -> None:
    before = BEFORE | {"d10": UNASSIGNED, "d11": UNASSIGNED}
    tonight = places(0, 0, 0, -1, 1, 1, 1, -1, 2, 2, 3, 3)
    found, ended = fates(tonight, 4, TWELVE, before, [*EVER, UNASSIGNED])
    assert ids(found) == ["c-0001", "c-0002", "c-0004", "c-0005"]
    assert found[3] == Fate("c-0005", "born")
    assert ended == []


def test_a_cluster_whose_documents_are_all_unassigned_ends_without_heirs() -> None:
    tonight = places(0, 0, 0, 0, 1, 1, 1, 1, -1, -1, 0, 1)
    _, ended = fates(tonight, 2, TWELVE, BEFORE, EVER)
    assert ended == [Fate("c-0004", "ended")]


def test_on_a_first_night_every_cluster_is_born() -> None:
    found, ended = fates(places(0, 1, 1), 2, TWELVE[:3], {}, [])
    assert (ids(found), events(found), ended) == (["c-0001", "c-0002"], ["born"] * 2, [])


def test_when_every_document_is_new_every_old_cluster_has_ended() -> None:
    found, ended = fates(places(0, 1), 2, ["new1", "new2"], BEFORE, EVER)
    assert ids(found) == ["c-0005", "c-0006"]
    assert ids(ended) == ["c-0001", "c-0002", "c-0004"]


def test_ids_grow_past_four_digits() -> None:
    assert ids(fates(places(0), 1, ["x"], {}, ["c-9999"])[0]) == ["c-10000"]


def test_an_earlier_cluster_that_lives_again_comes_out_of_who_has_its_documents() -> None:
    # c-0003 had ended in c-0001; going back, it has three of its documents and c-0004 ends.
    tonight = places(0, 2, 2, 2, 1, 1, 1, 1, 1, -1, -1, -1)
    found, ended = given_back(
        ["c-0001", "c-0002", "c-0003"], tonight, TWELVE, BEFORE, ["c-0001", "c-0002", "c-0004"]
    )
    assert ids(found) == ["c-0001", "c-0002", "c-0003"]
    assert events(found) == ["continued", "merged", "split"]
    assert [one.parents for one in found] == [[], ["c-0004"], ["c-0001"]]
    assert ended == [Fate("c-0004", "ended", heirs=["c-0002"])]
