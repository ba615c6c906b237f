"""The review page over real HTTP and in a real browser: two people, one journal, the next night."""

from __future__ import annotations

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
from flows.review_pages import HEADERS, build_app, strings
from flows.reviewing import Review
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
def served(house: House, users: Path | None = None) -> Iterator[Site]:
    """The page of a house, with the index made in a process of its own."""
    settings = load_settings(house.config)
    review = Review(settings, house.name, house.config)
    door = door_of("127.0.0.1", None, users, "ada")
    with socket.create_server(("127.0.0.1", 0)) as listening:
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


@pytest.fixture
def client(site: Site) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=site.url, headers={"Origin": site.url}) as found:
        yield found


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
        {"doc": doc_of(page), "do": "label", "label": "x", "queue": "nowhere"},
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
        assert client.get("/review").headers["location"] == "/signin"
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
        page = chromium.new_context(viewport={"width": 390, "height": 800}).new_page()
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
        page = chromium.new_context(color_scheme="light", locale="en-GB").new_page()
        page.goto(site.url)
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
