"""The review page over real HTTP and in a real browser: two people, one journal, the next night."""

from __future__ import annotations

import html
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from conftest import House, rows, texts

from flows.access import Door, add_user, door_of, matches, parsed
from flows.clusters import past_of
from flows.review_pages import HEADERS, build_app
from flows.reviewing import Review, alike, strings
from nightshift.errors import ConfigError
from nightshift.journal import Journal
from nightshift.pipeline import load_settings

SCRIPT = "<script>document.title = 'owned'</script> oven butter flour"
LONG = "roast " + "garlic" * 16_666
RIGHT_TO_LEFT = "שלום עולם oven \u202egnitset\u202c salt"
EMOJI = "👩‍🍳🔥 oven roast salt 🧈 <b>bold</b> & ]]> \" ' `"
CHINESE = "银行卡丢失了怎么办，请帮我挂失"
HOSTILE = [SCRIPT, LONG, RIGHT_TO_LEFT, EMOJI, CHINESE]
PASSWORD = "correct horse battery"


@dataclass
class Site:
    """A page that is being served."""

    url: str
    review: Review
    door: Door
    house: House

    @property
    def journal(self) -> Journal:
        return self.review.journal


@contextmanager
def served(
    house: House, users: Path | None = None, login: str = "ada", port: int = 0
) -> Iterator[Site]:
    """The page of a house, with the index made in a process of its own."""
    settings = load_settings(house.config)
    review = Review(settings, house.name, house.config)
    keep = review.shelf.folder / "review.key"
    door = door_of("127.0.0.1", None, users, login, house.name, keep)
    with socket.create_server(("127.0.0.1", port)) as listening:
        server = uvicorn.Server(uvicorn.Config(build_app(review, door), log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            review.shelf.look()
            assert review.shelf.problem is None
            yield Site(f"http://127.0.0.1:{listening.getsockname()[1]}", review, door, house)
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> House:
    """A house after a night: 60 labelled texts, 60 without a label, and some that mean harm."""
    house = House(tmp_path_factory.mktemp("review"))
    house.declare(clusters={"k": 3}, train={"epochs": 6, "learning_rate": 0.02,
                  "batch_tokens": 512, "when": "always"})  # fmt: skip
    free = [{"text": text} for topic in ("cooking", "sailing", "chess")
            for text in texts(topic, 20, seed=1)]  # fmt: skip
    hostile = [{"text": text} for text in HOSTILE]
    wrong = [{"text": text, "label": "chess"} for text in texts("sailing", 3, seed=2)]
    house.drop("one.jsonl", [*rows(25), *free, *hostile, *wrong])
    house.work("n1")
    return house


@pytest.fixture
def fresh(worked: House, tmp_path: Path) -> House:
    """The same, without a word in its journal, and to be changed at will."""
    house = House(tmp_path / worked.name)
    shutil.copytree(worked.folder, house.folder)
    house.settings = worked.settings
    return house


@pytest.fixture
def site(fresh: House) -> Iterator[Site]:
    with served(fresh) as found:
        yield found


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users.txt"
    for name in ("ada", "bob"):
        add_user(path, name, PASSWORD)
    return path


def token(page: str) -> str:
    return re.findall(r'name="token" value="([^"]+)"', page)[0]


def post(client: httpx.Client, path: str, page: str, **form: str) -> httpx.Response:
    return client.post(path, data={"token": token(page), **form})


@contextmanager
def browser_of(site: Site, name: str) -> Iterator[httpx.Client]:
    """The browser of somebody who has said who they are."""
    with httpx.Client(base_url=site.url, headers={"Origin": site.url}) as found:
        assert post(found, "/settings", found.get("/").text, name=name).status_code == 303
        yield found


@pytest.fixture
def client(site: Site) -> Iterator[httpx.Client]:
    with browser_of(site, "ada") as found:
        yield found


def jar(client: httpx.Client) -> dict[str, str]:
    """Cookies by name; their newest values."""
    return {one.name: one.value or "" for one in client.cookies.jar}


def fields(page: str, button: str) -> dict[str, str]:
    """What the form sends whose button says something."""
    forms = re.findall(r"<form.*?</form>", page, re.DOTALL)
    found = next(one for one in forms if re.search(button, one))
    pairs = re.findall(r'name="([^"]+)" value="([^"]*)"', found)
    return {name: html.unescape(value) for name, value in pairs}


def doc_of(page: str) -> str:
    return re.findall(r'data-doc="([^"]+)"', page)[0]


# --- asking and answering ---------------------------------------------------------------------


def test_a_label_lands_in_the_journal_at_once_with_who_and_when(
    site: Site, client: httpx.Client
) -> None:
    page = client.get("/review", params={"queue": "unsure"}).text
    doc = doc_of(page)
    done = post(client, "/say", page, doc=doc, do="label", label="baking", queue="unsure")
    assert (done.status_code, done.headers["location"]) == (303, "/review?queue=unsure")
    [word] = site.journal.said()
    assert (word.doc_id, word.kind, word.label, word.by) == (doc, "label", "baking", "ada")
    assert word.queue == "unsure"
    # The same form sent again, by an impatient person or a bad line, is no second word.
    post(client, "/say", page, doc=doc, do="label", label="baking", queue="unsure")
    assert len(site.journal.said()) == 1
    assert doc_of(client.get("/review", params={"queue": "unsure"}).text) != doc


def test_what_one_person_looks_at_is_not_given_to_another(site: Site) -> None:
    review = site.review
    first, second = review.next("unsure", "ada"), review.next("unsure", "bob")
    assert first is not None
    assert second is not None
    assert first.doc_id != second.doc_id
    again = review.next("unsure", "ada")
    assert again is not None
    assert again.doc_id == first.doc_id
    review.say(first.doc_id, "chess", "unsure", "ada")
    review.skip(second.doc_id, "unsure", "bob")
    # Skipped by bob, so open to ada, and never again to him.
    assert second.doc_id in set(review.open_in("unsure", "ada"))
    assert second.doc_id not in set(review.open_in("unsure", "bob"))
    assert first.doc_id not in set(review.open_in("unsure", "bob"))


def test_undo_opens_a_document_again_and_undo_of_undo_goes_further_back(site: Site) -> None:
    review = site.review
    docs = [review.next("unsure", "ada")]
    review.say(docs[0].doc_id, "chess", "unsure", "ada")  # type: ignore[union-attr]
    docs.append(review.next("unsure", "ada"))
    review.say(docs[1].doc_id, "chess", "unsure", "ada")  # type: ignore[union-attr]
    for doc in reversed(docs):
        word = review.journal.undo("ada")
        assert word is not None
        assert doc is not None
        assert word.doc_id == doc.doc_id
        assert doc.doc_id in set(review.open_in("unsure", "ada"))
    assert review.journal.undo("ada") is None


def test_queues_hold_what_they_promise(site: Site) -> None:
    index = site.review.index
    text = {row["doc_id"]: row["text"] for row in site.house.table("documents")}
    suspects = {text[one] for one in index.queues["suspects"]}
    assert suspects & {*texts("sailing", 3, seed=2)}
    margins = [doc.margin for doc in index.docs(index.queues["unsure"]) if doc.label is None]
    assert margins == sorted(margins)
    far = [doc.distance for doc in index.docs(index.queues["surprising"])]
    assert far == sorted(far, reverse=True)


@pytest.mark.parametrize(
    ("said", "found"),
    [("丢失", CHINESE), ("挂", CHINESE), ("卡丢失了", CHINESE), ("BOLD roa", EMOJI),
     ("עולם", RIGHT_TO_LEFT)],
)  # fmt: skip
def test_search_finds_words_of_two_characters_and_beginnings(
    site: Site, said: str, found: str
) -> None:
    index = site.review.index
    [doc] = index.docs(index.search(said, 10))
    assert doc.text == found or doc.text.startswith(found[:12])


@pytest.mark.parametrize("said", ['"', "* OR NEAR(", "-", "' ; drop table docs", "\x00", "a" * 999])
def test_search_takes_anything_that_is_typed(client: httpx.Client, said: str) -> None:
    assert client.get("/search", params={"q": said}).status_code == 200


@pytest.mark.parametrize("text", HOSTILE, ids=["script", "long", "rtl", "emoji", "chinese"])
def test_hostile_documents_are_shown_as_text(site: Site, client: httpx.Client, text: str) -> None:
    doc = next(row for row in site.house.table("documents") if row["text"][:9] == text[:9])
    page = client.get("/review", params={"queue": "unsure", "doc": doc["doc_id"], "whole": 1})
    assert page.status_code == 200
    assert "<script>document" not in page.text
    assert "<b>bold" not in page.text
    assert "\u202e" not in page.text
    for path in ("/", "/clusters", "/search?q=oven"):
        assert "<script>document" not in client.get(path).text


# --- no word is lost --------------------------------------------------------------------------


def test_a_second_page_on_another_port_costs_the_first_no_word(fresh: House) -> None:
    with served(fresh) as one, served(fresh) as two, browser_of(one, "ada") as client:
        page = client.get("/review").text
        # One browser: it sends its cookies to every port.
        with httpx.Client(
            base_url=two.url, headers={"Origin": two.url}, cookies=jar(client)
        ) as other:
            post(other, "/settings", other.get("/").text, name="ada")
            brought = jar(other)
        client.cookies = httpx.Cookies(brought)
        doc = doc_of(page)
        done = post(client, "/say", page, doc=doc, do="label", label="baking", queue="unsure")
        assert done.headers["location"] == "/review?queue=unsure"
        assert [(word.doc_id, word.label) for word in one.journal.said()] == [(doc, "baking")]


def test_a_form_that_was_open_while_the_page_was_restarted_is_still_good(fresh: House) -> None:
    with served(fresh) as site, browser_of(site, "bob") as client:
        page, port = client.get("/review").text, int(site.url.rpartition(":")[2])
        key = site.review.shelf.folder / "review.key"
        assert key.stat().st_mode & 0o777 == 0o600
        client.close()
        cookies = jar(client)
    with (
        served(fresh, port=port) as site,
        httpx.Client(base_url=site.url, headers={"Origin": site.url}, cookies=cookies) as client,
    ):
        done = post(client, "/say", page, doc=doc_of(page), do="label", label="baking")
        assert done.status_code == 303
        assert [word.by for word in site.journal.said()] == ["bob"]


def test_a_form_whose_session_has_ended_is_not_noted_and_need_only_be_sent_again(
    site: Site, client: httpx.Client
) -> None:
    page = client.get("/review").text
    doc = doc_of(page)
    form = {"doc": doc, "do": "label", "label": "so & <so>", "queue": "suspects"}
    for name in [one for one in client.cookies if one != "nightshift_reviewer"]:
        client.cookies.delete(name)
    told = post(client, "/say", page, **form)
    assert told.status_code == 403
    assert strings()["en"]["not_noted"] in told.text
    assert site.journal.said() == []
    again = fields(told.text, "Say it again")
    assert {key: again[key] for key in form} == form
    assert client.post("/say", data=again).status_code == 303
    [word] = site.journal.said()
    assert (word.doc_id, word.label, word.by) == (doc, "so & <so>", "ada")


def test_a_form_whose_session_has_ended_survives_signing_in(fresh: House, users: Path) -> None:
    with (
        served(fresh, users) as site,
        httpx.Client(base_url=site.url, headers={"Origin": site.url}) as client,
    ):
        form = {"doc": site.review.index.queues["unsure"][0], "do": "none", "queue": "unsure"}
        told = client.post("/say", data={**form, "token": "of yesterday"})
        assert told.status_code == 403
        sign_in = {**fields(told.text, "Sign in"), "name": "bob", "password": PASSWORD}
        back = client.post("/signin", data=sign_in)
        assert client.post("/say", data=fields(back.text, "Say it again")).status_code == 303
        [word] = site.journal.said()
        assert (word.doc_id, word.label, word.by) == (form["doc"], None, "bob")
        # Nobody is sent to another site from here.
        for to in ("//evil", "https://evil", "/\\evil"):
            gone = client.post("/signin", data={"name": "bob", "password": PASSWORD, "to": to})
            assert gone.headers["location"] == "/"


def test_a_word_is_noted_when_a_night_has_ended_the_cluster_under_review(
    site: Site, client: httpx.Client
) -> None:
    cluster_id = next(iter(site.review.index.clusters))
    page = client.get("/review", params={"queue": f"cluster {cluster_id}"}).text
    form = {"doc": doc_of(page), "do": "label", "label": "baking"}
    site.review.index.clusters.pop(cluster_id)
    done = post(client, "/say", page, queue=f"cluster {cluster_id}", **form)
    assert done.status_code == 303
    assert [word.label for word in site.journal.said()] == ["baking"]
    shown = client.get(done.headers["location"])
    assert shown.status_code == 200
    assert strings()["en"]["queue_gone"] in shown.text
    # Nor does a queue that never was cost a word.
    page = client.get("/review").text
    post(client, "/say", page, doc=doc_of(page), do="label", label="baking", queue="import")
    assert [word.queue for word in site.journal.said()] == [f"cluster {cluster_id}", "unsure"]


@pytest.mark.parametrize("queue", ["import", "foo", "", "cluster c-9999", "cluster"])
def test_a_queue_that_is_not_there_becomes_the_unsure_ones(
    site: Site, client: httpx.Client, queue: str
) -> None:
    doc = site.review.index.queues["unsure"][-1]
    for asked in ({"queue": queue}, {"queue": queue, "doc": doc}, {"queue": queue, "whole": "abc"}):
        page = client.get("/review", params=asked)
        assert (page.status_code, fields(page.text, "Skip")["queue"]) == (200, "unsure")


def test_undo_leaves_what_came_in_a_file(site: Site, client: httpx.Client) -> None:
    doc = site.review.index.queues["unsure"][0]
    site.journal.say_labels([(doc, "chess", None)], "import", "ada")
    done = post(client, "/undo", client.get("/review").text, queue="unsure")
    assert "nothing_to_undo" in done.headers["location"]
    assert client.get(done.headers["location"]).status_code == 200
    assert [word.kind for word in site.journal.said()] == ["label"]


# --- who it is --------------------------------------------------------------------------------


def test_everybody_on_the_loopback_is_asked_once_who_they_are(site: Site) -> None:
    with httpx.Client(base_url=site.url, headers={"Origin": site.url}) as client:
        asked = client.get("/review?queue=against")
        form = fields(asked.text, "Go on")
        assert (form["name"], form["to"]) == ("ada", "/review?queue=against")
        done = client.post("/settings", data={**form, "name": "Zoë 王"})
        assert done.headers["location"] == "/review?queue=against"
        assert client.get("/review").status_code == 200
        named = next(one for one in done.headers.get_list("set-cookie") if "reviewer=" in one)
        assert "samesite=lax" in named.lower()
        # A new session, some other day, is theirs.
        for name in [one for one in client.cookies if one != "nightshift_reviewer"]:
            client.cookies.delete(name)
        assert 'value="Zoë 王"' in client.get("/").text
        bad = post(client, "/settings", client.get("/").text, name="source")
        assert bad.status_code == 400


def test_two_people_of_one_name_are_shown_two_documents_and_one_keeps_theirs(site: Site) -> None:
    with browser_of(site, "ada") as one, browser_of(site, "ada") as two:
        first, second = doc_of(one.get("/review").text), doc_of(two.get("/review").text)
        assert first != second
        assert doc_of(one.get("/review").text) == first
        assert strings()["en"]["seen"] in two.get("/review", params={"doc": first}).text
        assert strings()["en"]["seen"] not in one.get("/review", params={"doc": first}).text


def test_a_new_name_leaves_forms_that_are_open_good(site: Site, client: httpx.Client) -> None:
    page = client.get("/review").text
    post(client, "/settings", page, name="eve")
    post(client, "/say", page, doc=doc_of(page), do="none", queue="unsure")
    assert [word.by for word in site.journal.said()] == ["eve"]


def test_a_link_on_another_site_replaces_no_session(site: Site, client: httpx.Client) -> None:
    elsewhere = {"Sec-Fetch-Site": "cross-site"}
    with httpx.Client(base_url=site.url, headers=elsewhere) as other:  # Strict cookies stay home
        shown = other.get("/review?queue=against&doc=x")
        assert shown.status_code == 200
        assert "set-cookie" not in shown.headers
        to = html.unescape(re.findall(r'content="0; url=([^"]+)"', shown.text)[0])
    assert to == "/review?queue=against&doc=x&here=1"
    doc = site.review.index.queues["unsure"][0]
    assert client.get(f"/review?queue=unsure&doc={doc}&here=1").status_code == 200


# --- labels as they are, and slips of the pen ---------------------------------------------------


def test_a_label_of_the_source_is_accepted_as_the_source_has_it(
    site: Site, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = "two  blanks, two\nlines " + "x" * 90
    about = {**site.review.index.about, "classes": [*site.review.index.about["classes"], odd]}
    monkeypatch.setattr(site.review.index, "about", about)
    page = client.get("/review").text
    # A browser sends line ends as forms do.
    form = {"doc": doc_of(page), "do": "label", "label": odd.replace("\n", "\r\n")}
    assert post(client, "/say", page, queue="unsure", **form).status_code == 303
    assert [word.label for word in site.journal.said()] == [odd]


@pytest.mark.parametrize("typed", ["Chess", "ches", "chesss", "ＣＨＥＳＳ", "chses"])
def test_a_slip_of_the_pen_makes_no_class_before_it_was_asked(
    site: Site, client: httpx.Client, typed: str
) -> None:
    page = client.get("/review").text
    form = {"doc": doc_of(page), "do": "label", "label": typed, "queue": "unsure"}
    asked = post(client, "/say", page, **form)
    assert asked.status_code == 409
    assert site.journal.said() == []
    client.post("/say", data=fields(asked.text, "Yes:"))
    client.post("/say", data=fields(asked.text, "No, a new class"))
    assert [word.label for word in site.journal.said()] == ["chess", typed]
    # It is a class now, and nobody is asked again.
    page = client.get("/review").text
    assert post(client, "/say", page, **{**form, "doc": doc_of(page)}).status_code == 303


def test_names_are_alike_or_not() -> None:
    known = ["card", "cat", "银行卡", "转账"]
    assert alike("Card", known) == "card"
    assert alike("cards", known) == "card"
    assert alike("CAT", known) == "cat"
    for other in ("car t", "cut", "银行", "付账", "lost card"):
        assert alike(other, known) is None


def test_a_class_of_a_cluster_is_asked_about_kept_and_taken_back(
    site: Site, client: httpx.Client
) -> None:
    cluster_id = next(iter(site.review.index.clusters))
    page = client.get("/clusters").text
    form = {"id": cluster_id, "do": "name", "name": "Openings"}
    asked = post(client, "/cluster", page, **form, **{"class": "Chess"})
    assert asked.status_code == 409
    client.post("/cluster", data=fields(asked.text, "Yes:"))
    assert site.journal.names()[cluster_id].class_name == "chess"
    post(client, "/cluster", page, **{**form, "name": "Gambits"})
    assert site.journal.names()[cluster_id].class_name == "chess"
    assert strings()["en"]["examples_of"] in client.get("/clusters").text
    post(client, "/cluster", page, **form, **{"class": ""})
    word = site.journal.names()[cluster_id]
    assert (word.name, word.class_name) == ("Openings", None)
    assert strings()["en"]["examples_of"] not in client.get("/clusters").text


def test_a_circle_of_mergers_is_refused_in_the_reader_s_language(
    site: Site, client: httpx.Client
) -> None:
    one, two, *_ = site.review.index.clusters
    page = client.get("/clusters").text
    assert post(client, "/cluster", page, id=one, do="merge", other=two).status_code == 303
    refused = post(client, "/cluster", page, id=two, do="merge", other=one)
    assert (refused.status_code, "no circle" in refused.text) == (400, True)
    client.cookies.set("lang", "zh")
    told = [
        post(client, "/cluster", page, id=two, do="merge", other=one),
        post(client, "/cluster", page, id=one, do="merge", other=one),
        post(client, "/cluster", page, id=one, do="split", parts="99"),
        post(client, "/cluster", page, id=one, do="name", name=""),
        post(client, "/cluster", page, id="c-9999", do="split"),
        post(client, "/say", page, doc="nobody", do="none"),
        post(client, "/say", page, doc="nobody", do="dance"),
    ]
    for answer in told:
        message = re.findall(r'role="alert">([^<]+)', answer.text)[0]
        assert answer.status_code == 400
        assert re.search("[\u4e00-\u9fff]", message), message
        assert "expected" not in message


def test_queues_hold_what_deserves_a_look_and_not_everything(site: Site) -> None:
    index = site.review.index
    everything = index.about["documents"]
    assert 0 < len(index.queues["unsure"]) < everything / 2
    assert 0 < len(index.queues["surprising"]) < everything / 2
    abstained = {row["doc_id"] for row in site.house.table("predictions") if row["abstained"]}
    assert abstained <= {*index.queues["unsure"]}


def test_the_newest_night_s_page_is_one_click_away_and_runs_only_its_own_script(
    site: Site, client: httpx.Client
) -> None:
    assert 'href="/report"' in client.get("/").text
    page = client.get("/report")
    assert page.status_code == 200
    assert "n1" in page.text
    policy = page.headers["content-security-policy"]
    assert "script-src 'sha256-" in policy
    assert policy.endswith("frame-ancestors 'none'")
    assert page.headers["x-content-type-options"] == "nosniff"
    (site.house.folder / "reports" / site.house.name / "n1.html").unlink()
    assert 'href="/report"' not in client.get("/").text
    assert client.get("/report").status_code == 404


# --- safety -----------------------------------------------------------------------------------


def test_every_answer_says_what_a_browser_may_load(client: httpx.Client) -> None:
    for path in ("/", "/review", "/clusters", "/search?q=oven", "/static/review.js", "/nowhere"):
        answer = client.get(path)
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "script-src 'self'" in HEADERS["Content-Security-Policy"]
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
    # Nothing stands inline, so nothing needs an exception.
    page = client.get("/").text
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", page)


def test_a_form_of_another_site_or_session_is_refused(site: Site, client: httpx.Client) -> None:
    page = client.get("/review").text
    form = {"doc": doc_of(page), "do": "label", "label": "x", "queue": "unsure"}
    refused = [
        client.post("/say", data=form),
        client.post("/say", data={**form, "token": "made up"}),
        client.post("/say", data={**form, "token": token(page)}, headers={"Origin": "http://evil"}),
        client.post("/say", data={**form, "token": token(page)}, headers={"Origin": "null"}),
    ]
    with httpx.Client(base_url=site.url) as other:
        foreign = token(other.get("/").text)
        refused.append(other.post("/say", data={**form, "token": token(page)}))
    refused.append(client.post("/say", data={**form, "token": foreign}))
    assert [one.status_code for one in refused] == [403] * 6
    assert site.journal.said() == []


def test_a_name_that_was_made_to_point_here_is_refused(site: Site, client: httpx.Client) -> None:
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 421
    assert client.get("/", headers={"Host": "localhost:1234"}).status_code == 200


def test_a_document_that_is_not_there_and_a_wrong_form_are_told(
    site: Site, client: httpx.Client
) -> None:
    page = client.get("/review").text
    for form in (
        {"doc": "nobody", "do": "label", "label": "x", "queue": "unsure"},
        {"doc": doc_of(page), "do": "label", "label": "", "queue": "unsure"},
        {"doc": doc_of(page), "do": "dance", "queue": "unsure"},
    ):
        answer = post(client, "/say", page, **form)
        assert (answer.status_code, 'role="alert"' in answer.text) == (400, True)
    assert post(client, "/say", page, doc="x" * 70_000).status_code == 413
    assert post(client, "/cluster", page, id="c-9999", do="split").status_code == 400
    assert site.journal.said() == []


def test_beyond_the_loopback_people_must_sign_in(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="people must sign in"):
        door_of("0.0.0.0", None, None, "ada")
    with pytest.raises(ConfigError, match="people must sign in"):
        door_of("127.0.0.1", "https://review.example.org", None, "ada")
    with pytest.raises(ConfigError, match="cannot be read"):
        door_of("0.0.0.0", None, tmp_path / "absent", "ada")


def test_passwords_are_kept_as_scrypt_and_by_their_owner_alone(users: Path) -> None:
    assert users.stat().st_mode & 0o777 == 0o600
    assert PASSWORD not in users.read_text()
    kept = parsed(users.read_text(), "users")
    assert list(kept) == ["ada", "bob"]
    assert kept["ada"] != kept["bob"]
    assert matches(PASSWORD, kept["ada"])
    assert not matches("wrong", kept["ada"])
    with pytest.raises(ConfigError, match="12 or more"):
        add_user(users, "eve", "short")
    with pytest.raises(ConfigError, match="no person's name"):
        add_user(users, "source", PASSWORD)


def test_who_guesses_passwords_has_to_wait(fresh: House, users: Path) -> None:
    with (
        served(fresh, users) as site,
        httpx.Client(base_url=site.url, headers={"Origin": site.url}) as client,
    ):
        assert client.get("/").headers["location"] == "/signin"
        asked = client.get("/review?queue=against").headers["location"]
        assert asked == "/signin?to=%2Freview%3Fqueue%3Dagainst"
        for _ in range(5):
            wrong = client.post("/signin", data={"name": "ada", "password": "guess"})
            assert wrong.status_code == 403
        held = client.post("/signin", data={"name": "ada", "password": PASSWORD})
        assert held.status_code == 429
        assert 0 < int(held.headers["retry-after"]) <= 301


def test_a_session_ends_with_its_user_and_its_cookie_is_out_of_reach(
    fresh: House, users: Path
) -> None:
    with (
        served(fresh, users) as site,
        httpx.Client(base_url=site.url, headers={"Origin": site.url}) as client,
    ):
        done = client.post("/signin", data={"name": "bob", "password": PASSWORD})
        cookie = done.headers["set-cookie"].lower()
        assert all(one in cookie for one in ("httponly", "samesite=strict", "path=/"))
        assert client.get("/").status_code == 200
        time.sleep(0.02)
        users.write_text("\n".join(users.read_text().splitlines()[:1]) + "\n")
        assert client.get("/").headers["location"] == "/signin"


# --- in a browser -----------------------------------------------------------------------------

pytestmark_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def signed_in(browser: Any, site: Site, name: str, **options: Any) -> Any:
    """A page of a person; whatever goes wrong in it fails the test."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(20_000)
    page.goto(site.url)
    page.fill("input[name=name]", name)
    page.fill("input[name=password]", PASSWORD)
    page.click("main button")
    page.wait_for_selector(".cards")
    return page


def introduced(browser: Any, site: Site, **options: Any) -> Any:
    """A page of somebody who has said who they are, where no password is asked for."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(20_000)
    page.goto(site.url)
    with page.expect_navigation():
        page.click("main button")
    return page


def press(page: Any, key: str) -> None:
    """A key, and the page that follows."""
    with page.expect_navigation():
        page.keyboard.press(key)


def shown(page: Any) -> str:
    return page.get_attribute("article", "data-doc")


def test_two_people_review_by_keyboard_and_the_next_night_learns_it(
    chromium: Any, fresh: House, users: Path, tmp_path: Path
) -> None:
    with served(fresh, users) as site:
        problems: list[str] = []
        ada, bob = signed_in(chromium, site, "ada"), signed_in(chromium, site, "bob")
        for page in (ada, bob):
            page.on("console", lambda one: problems.append(one.text) if one.type == "error" else 0)
            page.on("pageerror", lambda one: problems.append(str(one)))
        press(ada, "1")
        press(bob, "1")
        seen: list[tuple[str, str]] = []
        for turn in range(5):
            for name, page in (("ada", ada), ("bob", bob)):
                seen.append((name, shown(page)))
                assert shown(ada) != shown(bob)
                press(page, "a" if turn % 2 else "2")
        assert len({doc for _, doc in seen}) == 10
        words = site.journal.said()
        assert [(one.by, one.doc_id) for one in words] == seen
        # Undo shows the document again; another label is typed.
        press(ada, "u")
        assert shown(ada) == seen[-2][1]
        ada.keyboard.press("r")
        ada.keyboard.type("galley")
        press(ada, "Enter")
        assert site.journal.said()[-1].label == "galley"
        press(bob, "s")
        assert site.journal.said()[-1].kind == "skip"
        # A cluster is named and made a class.
        press(ada, "c")
        card = ada.locator("details.card").first
        cluster_id = card.get_attribute("id")
        card.locator("summary").click()
        card.locator("input[name=name]").fill("All aboard")
        card.locator("input[name=class]").fill("boats")
        with ada.expect_navigation():
            card.locator("form", has=ada.locator("input[name=class]")).locator("button").click()
        assert "All aboard" in ada.locator("details[open] summary").inner_text()
        ada.screenshot(path=tmp_path / "clusters.png", full_page=True)
        assert problems == []
        held = site.review.words
        held.read_on()
        labels = {one: word.label for one, word in held.holds.items()}
        assert len(labels) == 10
    fresh.work("n2")
    told = {row["doc_id"]: row for row in fresh.table("labels")}
    assert {one: told[one]["label"] for one in labels} == labels
    assert {told[one]["by"] for one in labels} == {"ada", "bob"}
    night = fresh.lake.published()
    assert night["figures"]["trained"]
    assert {"boats", "galley"} <= {*night["figures"]["basis"]["classes"]}
    row = next(one for one in past_of(load_settings(fresh.config), fresh.name).tonight
               if one["cluster_id"] == cluster_id)  # fmt: skip
    assert (row["name"], row["named_by"]) == ("All aboard", "ada")
    page = (fresh.folder / "reports" / fresh.name / "n2.html").read_text()
    assert "People labelled 10 documents since the last training" in page
    # Nothing is asked twice, and nothing is written twice.
    with served(fresh, users) as site:
        assert not {*labels} & {one for queue in site.review.index.queues.values() for one in queue}
    fresh.work("n3")
    assert sum(row["doc_id"] in labels for row in fresh.table("labels")) == len(labels)


@pytest.mark.parametrize(
    "text", [SCRIPT, LONG, RIGHT_TO_LEFT, EMOJI], ids=["script", "long", "rtl", "emoji"]
)
def test_hostile_documents_do_no_harm_in_a_browser(
    chromium: Any, worked: House, text: str, tmp_path: Path
) -> None:
    with served(worked) as site:
        doc = next(row for row in worked.table("documents") if row["text"][:9] == text[:9])
        page = introduced(chromium, site, viewport={"width": 390, "height": 800})
        page.goto(f"{site.url}/review?queue=unsure&doc={doc['doc_id']}&whole=1")
        assert "owned" not in page.title()
        assert page.locator("article script, article b").count() == 0
        assert page.locator("article").inner_text()[:7].strip() == doc["text"][:7].strip()
        # No text makes the page wider than a phone.
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        if text is RIGHT_TO_LEFT:
            assert (
                page.evaluate("getComputedStyle(document.querySelector('article')).direction")
                == "rtl"
            )
        page.screenshot(path=tmp_path / "hostile.png")


def test_language_and_theme_are_chosen_and_kept(chromium: Any, worked: House) -> None:
    with served(worked) as site:
        page = introduced(chromium, site, color_scheme="light", locale="en-GB")
        ground = "getComputedStyle(document.documentElement).backgroundColor"
        light = page.evaluate(ground)
        with page.expect_navigation():
            page.click("button[name=lang]")
        assert page.get_attribute("html", "lang") == "zh-Hans"
        assert strings()["zh"]["unsure"] in page.inner_text("main")
        page.select_option("select[name=theme]", "dark")
        with page.expect_navigation():
            page.click("footer button:not([name])")
        assert page.evaluate(ground) != light
        assert page.get_attribute("html", "lang") == "zh-Hans"


def test_every_word_of_the_interface_is_there_in_both_languages() -> None:
    english, chinese = strings()["en"], strings()["zh"]
    assert all(english.values())
    assert all(chinese.values())
    used: set[str] = set()
    for page in (Path(__file__).parent.parent / "flows" / "review").glob("*.html"):
        used |= {*re.findall(r"\bsay\.(\w+)", page.read_text())}
    assert used <= english.keys()
