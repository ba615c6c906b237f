"""The morning page in a real browser: read, filtered, pointed at, switched, and attacked.

The browser is the system's own Chromium; without one these tests are skipped.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from conftest import House, rows
from test_reports import HOSTILE, cluster, evaluated_night, quality, third_night

from nightshift.explanations import Explanation, Word
from nightshift.pictures import Point
from nightshift.pipeline import load_settings
from nightshift.reports import NightReport, ReportConfig, render

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]
WORDS = "anchor sail mast harbour tide wind keel deck rope skipper pawn rook bishop queen"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Opened:
    """A page in the browser, and all that it complained of."""

    def __init__(self, browser: Browser, path: Path, **options: Any):
        context = browser.new_context(viewport={"width": 1200, "height": 900}, **options)
        self.page: Page = context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def style(self, variable: str) -> str:
        return self.page.evaluate(
            "name => getComputedStyle(document.documentElement).getPropertyValue(name)", variable
        ).strip()

    def count(self) -> str:
        return self.page.inner_text("#map-count")


def points(count: int) -> list[Point]:
    """Documents in three groups, the newest tenth of them tonight's."""
    chance = random.Random(1)
    found = []
    for n in range(count):
        group = n % 3
        text = " ".join(chance.choices(WORDS.split(), k=14)) + f" number {n}"
        night = "2026-11-22" if n % 10 == 0 else "2026-11-21"
        label = ("good", "bad", None)[group]
        place = 5 * group + chance.gauss(0, 1), chance.gauss(0, 1)
        found.append(Point(*place, f"c-000{group + 1}", label, text, night))
    return found


def explained(text: str) -> dict[str, Any]:
    word = Word(text[:200], 0, min(200, len(text)), 0.5, 0.9, -0.1, 0.7, 0.8)
    found = Explanation(
        text, "good", 0.8, False, [("good", 0.8)], [word], 0.5, 0.0, 0.1, 0.0, 0.6, 0
    )
    return {"doc_id": '"><script>alert(1)</script>', **found.as_json()}


def whole_night(text: str = "The soup was cold.", count: int = 600) -> NightReport:
    """A night with everything on its page, `text` wherever a document is shown."""
    row = {"doc_id": "d-1", "label": text[:200], "given": True, "probability": 0.5,
           "cluster_id": "c-0001"}  # fmt: skip
    evidence = {"kind": "labels", "value": 0.4, "limit": 0.1, "before": None, "after": None,
                "drifts": True}  # fmt: skip
    drift = {"documents": [90, 90], "evidence": [evidence], "drifts": ["labels"],
             "arrived": [{"name": text[:40], "documents": 5}], "vanished": []}  # fmt: skip
    shift = {"label": text[:200], "before": 0.1, "after": 0.3, "shift": 0.2, "data": 0.15,
             "model": 0.05, "interaction": 0.0}  # fmt: skip
    return replace(
        evaluated_night(text),
        clusters=[cluster(1, text[:200]), cluster(2, "music", event="born", previous_size=None),
                  cluster(3, "rest")],
        points=[*points(count), Point(1, 1, "c-0001", text[:200], text, "2026-11-22")],
        by_file={"files": [{"file": text[:200], "documents": 9, "labelled": 3,
                            "labels": [[text[:200], 9]], "more": 2}], "left_out": 1},
        changes={"of": 100, "documents": 5,
                 "flows": [{"before": text[:200], "after": "bad", "documents": 5}],
                 "examples": [{"doc_id": "d-1", "before": text[:200], "after": "bad",
                               "probability": 0.9}]},
        standouts={"unsure": [{**row, "margin": 0.01}], "surprising": [{**row, "distance": 2.0}],
                   "disagreeing": [{**row, "usual": text[:200], "purity": 0.9}]},
        shift={"rows": [shift], "night": "2026-11-21", "documents": [90, 90], "other_model": True,
               "asked": 60},
        drift={"last_night": {**drift, "night": "2026-11-21"}, "training": drift},
        explained=[explained(text)],
        ended=[{"cluster_id": "c-0009", "name": text[:200], "size": 0, "event": "ended",
                "keywords": [text[:40]], "heirs": ["c-0001"]}],
    )  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "night.html"
    path.write_text(render(whole_night()), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser: Browser, written: Path) -> Opened:
    return Opened(browser, written)


def test_the_page_opens_without_a_complaint_and_asks_nothing_of_the_network(
    opened: Opened, written: Path
) -> None:
    opened.page.wait_for_selector("#map-legend button")
    assert opened.complaints == []
    assert opened.requests == [written.as_uri()]
    for heading in ("What changed", "Why it changed", "What to look at", "Explained answers"):
        assert opened.page.get_by_role("heading", name=heading, exact=True).is_visible()


def test_the_map_is_filtered_by_cluster_label_night_and_words(opened: Opened) -> None:
    page = opened.page
    assert opened.count() == "601 / 601"
    page.click("#map-legend button >> nth=1")
    assert opened.count() == "200 / 601"
    page.click("#map-legend button >> nth=1")
    page.select_option("#map-only", "tonight")
    assert opened.count() == "61 / 601"
    page.select_option("#map-by", "label")
    assert opened.count() == "601 / 601"
    page.select_option("#map-only", label="bad (200)")
    assert opened.count() == "200 / 601"
    page.click("#map-all")
    page.fill("#map-search", "number 17")
    page.locator("#map-count", has_text="11 /").wait_for()
    page.click("#map-all")
    assert opened.count() == "601 / 601"
    assert page.input_value("#map-search") == ""


def test_pointing_at_a_dot_shows_its_text(opened: Opened) -> None:
    page = opened.page
    page.locator("#map-top").scroll_into_view_if_needed()
    x, y = page.evaluate("nightshiftAtlas.place(42)")
    box = page.locator("#map-top").bounding_box()
    assert box is not None
    assert not page.is_visible("#map-tip")
    page.mouse.move(box["x"] + x, box["y"] + y)
    shown = page.inner_text("#map-tip p")
    assert shown == page.evaluate("nightshiftAtlas.text(42)")
    assert shown.endswith("number 42")
    assert "2026-11-21" in page.inner_text("#map-tip b")
    page.mouse.move(box["x"] - 30, box["y"] + 5)
    assert not page.is_visible("#map-tip")


def test_the_map_is_read_by_keys_alone(opened: Opened) -> None:
    page = opened.page
    page.focus("#map-top")
    page.keyboard.press("ArrowRight")
    first = page.inner_text("#map-tip p")
    page.keyboard.press("ArrowRight")
    second = page.inner_text("#map-tip p")
    assert "number" in first
    assert second != first
    before = page.evaluate("nightshiftAtlas.place(42)")
    page.keyboard.press("+")
    assert page.evaluate("nightshiftAtlas.place(42)") != before
    page.keyboard.press("0")
    assert page.evaluate("nightshiftAtlas.place(42)") == before
    page.locator("body").press("/")
    assert page.evaluate("document.activeElement.id") == "map-search"


def test_the_theme_is_switched_by_button_and_key_and_stays(opened: Opened) -> None:
    light = opened.style("--paper")
    opened.page.click("#theme")
    assert opened.style("--paper") == light
    assert opened.page.inner_text("#theme") == "Theme: light"
    opened.page.keyboard.press("t")
    dark = opened.style("--paper")
    assert dark != light
    # Pictures follow the page, and with it the words in them.
    colour = "getComputedStyle(document.querySelector('.picture')).color"
    assert opened.page.evaluate(colour) == "rgb(227, 229, 236)"
    # A loaded browser may lose what a page stored an instant before it was left: that the next
    # page reads what this one stored is tried without leaving it to the browser to carry it.
    stored = opened.page.evaluate("JSON.stringify(localStorage)")
    restore = f"for (const [k, v] of Object.entries({stored})) localStorage.setItem(k, v)"
    opened.page.add_init_script(restore)
    opened.page.reload()
    assert opened.style("--paper") == dark
    assert opened.page.inner_text("#theme") == "Theme: dark"


def test_a_dark_system_gets_a_dark_page_until_a_person_says_otherwise(
    browser: Browser, written: Path
) -> None:
    opened = Opened(browser, written, color_scheme="dark")
    dark = opened.style("--paper")
    opened.page.click("#theme")
    assert opened.style("--paper") != dark


def test_the_language_is_switched_everywhere(opened: Opened) -> None:
    page = opened.page
    page.keyboard.press("l")
    assert page.get_attribute("html", "lang") == "zh-Hans"
    said = page.inner_text("body")
    for words in ("有何变化", "为何变化", "值得一看", "答案解释", "挑战者更好", "按聚类"):
        assert words in said or words in page.inner_text("#map-by")
    for words in ("What changed", "Why it changed", "The pipeline holds", "champion better"):
        assert words not in said
    assert page.get_attribute("#map-search", "placeholder") == "文本中的词"
    page.click("#language")
    assert "What changed" in page.inner_text("body")
    assert "有何变化" not in page.inner_text("body")


def test_a_chinese_house_opens_in_chinese(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "zh.html"
    path.write_text(render(whole_night(), ReportConfig(language="zh")), encoding="utf-8")
    assert "有何变化" in Opened(browser, path).page.inner_text("body")
    # Without a script as well: the language is an attribute, and the map a picture.
    plain = Opened(browser, path, java_script_enabled=False).page
    assert "有何变化" in plain.inner_text("body")
    assert plain.locator("noscript svg circle").count() > 100
    assert not plain.is_visible("#atlas")


def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Browser, written: Path) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto(written.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_in_print_there_are_no_buttons_and_the_paper_is_white(opened: Opened) -> None:
    opened.page.keyboard.press("t")
    opened.page.keyboard.press("t")
    opened.page.emulate_media(media="print")
    assert not opened.page.is_visible("#switches")
    assert not opened.page.is_visible("#map-search")
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    assert opened.page.evaluate(ground) == "rgb(255, 255, 255)"
    ink = "getComputedStyle(document.querySelector('.picture')).color"
    assert opened.page.evaluate(ink) == "rgb(32, 36, 46)"


LONG = "a class whose name somebody wrote as a whole sentence about refunds and deliveries, " * 2


def test_one_long_class_name_leaves_room_for_bars_files_and_figures(
    browser: Browser, tmp_path: Path
) -> None:
    night = whole_night()
    night = replace(
        night, label_counts={"good": 60, LONG: 30},
        by_file={"files": [{"file": "a.csv", "documents": 9, "labelled": 3,
                            "labels": [[LONG, 9], ["bad", 2]], "more": 2}], "left_out": 0},
        quality=quality(labels=(*(f"class number {n}" for n in range(11)), LONG)),
    )  # fmt: skip
    path = tmp_path / "long.html"
    path.write_text(render(night), encoding="utf-8")
    page = Opened(browser, path).page
    widths = page.evaluate("[...document.querySelectorAll('.bar')].map(one => one.offsetWidth)")
    assert widths[0] > 150
    assert widths[1] == pytest.approx(widths[0] / 2, abs=2)
    cut = "one => one.scrollWidth > one.clientWidth + 1"
    found = f"[...document.querySelectorAll('.scroll')].filter({cut}).length"
    assert page.evaluate(found) == 0
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 718, "height": 1000})
    assert page.evaluate("document.documentElement.scrollWidth") <= 718


def test_on_a_phone_a_row_has_its_text_above_and_its_numbers_under_it_by_name(
    browser: Browser, tmp_path: Path
) -> None:
    path = tmp_path / "phone.html"
    path.write_text(render(whole_night("The soup was cold. " * 9)), encoding="utf-8")
    page = browser.new_context(viewport={"width": 390, "height": 844}).new_page()
    page.goto(path.as_uri())
    row = page.locator("#look table tbody tr").first
    boxes = [one.bounding_box() for one in row.locator("th, td").all()]
    assert all(box is not None and box["x"] + box["width"] <= 390 for box in boxes)
    assert boxes[0] is not None
    assert boxes[0]["width"] > 330
    name = "getComputedStyle(document.querySelector('#look td:last-child'), '::before').content"
    assert "Margin" in page.evaluate(name)
    page.keyboard.press("l")
    assert "差值" in page.evaluate(name)


def test_fingers_scroll_the_page_and_two_of_them_zoom_the_map(
    browser: Browser, written: Path
) -> None:
    phone = {"width": 390, "height": 844}
    page = browser.new_context(viewport=phone, has_touch=True, is_mobile=True).new_page()
    page.goto(written.as_uri())
    page.wait_for_selector("#map-legend button")
    touch = "getComputedStyle(document.querySelector('#map-field')).touchAction"
    assert page.evaluate(touch) == "pan-y"
    page.locator("#map-top").scroll_into_view_if_needed()
    box = page.locator("#map-top").bounding_box()
    assert box is not None
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    ends = "nightshiftAtlas.place(40)[n] - nightshiftAtlas.place(41)[n]"
    apart = f"Math.hypot(...[0, 1].map(n => {ends}))"
    before = page.evaluate(apart)
    page.tap("#map-in")
    assert page.evaluate(apart) == pytest.approx(1.5 * before)
    page.tap("#map-out")
    fingers = page.context.new_cdp_session(page)

    def send(kind: str, *reach: float) -> None:
        points = [{"x": middle[0] + one, "y": middle[1], "id": n} for n, one in enumerate(reach)]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    send("touchStart", -30)
    send("touchStart", -30, 30)
    send("touchMove", -45, 45)
    send("touchMove", -60, 60)
    send("touchEnd")
    assert page.evaluate(apart) == pytest.approx(2 * before, rel=0.1)
    page.tap("#map-all")
    x, y = page.evaluate("nightshiftAtlas.place(42)")
    page.touchscreen.tap(box["x"] + x, box["y"] + y)
    assert page.is_visible("#map-tip")


def test_paper_is_white_under_pictures_too_and_nothing_on_it_is_folded(
    browser: Browser, tmp_path: Path
) -> None:
    night = replace(whole_night(), examples={"d-1": "cold soup " * 90, "d-2": "fish"})
    path = tmp_path / "print.html"
    path.write_text(render(night), encoding="utf-8")
    page = Opened(browser, path, color_scheme="dark").page
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    grounds = page.evaluate(
        "[...document.querySelectorAll('.picture .ground')].map(one => getComputedStyle(one).fill)"
    )
    assert set(grounds) == {"rgb(255, 255, 255)"}
    assert page.is_visible("#map-legend button >> nth=0")
    assert page.locator("details").count() > 1
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0


def test_a_text_begins_at_its_own_side_in_either_language(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "rtl.html"
    path.write_text(render(whole_night("שלום עולם")), encoding="utf-8")
    page = Opened(browser, path).page
    side = "one => getComputedStyle(one).direction + getComputedStyle(one).textAlign"
    sides = f"[...document.querySelectorAll('#look [dir]')].map({side})"
    english = page.evaluate(sides)
    assert "rtlstart" in english
    page.keyboard.press("l")
    assert page.evaluate(sides) == english


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_document_is_shown_as_it_is_and_does_nothing(
    browser: Browser, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "hostile.html"
    path.write_text(render(whole_night(text, count=30)), encoding="utf-8")
    opened = Opened(browser, path)
    page = opened.page
    page.wait_for_selector("#map-legend button", state="attached")
    page.evaluate("nightshiftAtlas.paint()")
    assert opened.complaints == []
    assert page.evaluate("document.querySelectorAll('script').length") == 3
    assert page.locator("img").count() == 0
    head = " ".join(text.split())[:20]
    on_map = page.evaluate("nightshiftAtlas.text(30)")
    if "\x00" not in text and "\ud800" not in text and "\u202e" not in text:
        assert on_map.startswith(head)
        assert head in page.inner_text("#look")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200
    page.focus("#map-top")
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#map-tip")


def test_fifty_thousand_documents_open_within_two_seconds(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "large.html"
    night = replace(third_night(), points=points(50_000), documents=50_000)
    path.write_text(render(night, ReportConfig(map_points=50_000)), encoding="utf-8")
    assert path.stat().st_size < 15_000_000
    seconds, frames = [], []
    for _ in range(3):  # other work on the machine may spoil one
        opened = Opened(browser, tmp_path / "large.html")
        began = time.perf_counter()
        opened.page.goto(path.as_uri())
        opened.page.locator("#map-count", has_text="50,000").wait_for()
        opened.page.evaluate("nightshiftAtlas.paint()")
        seconds.append(time.perf_counter() - began)
        frames.append(opened.page.evaluate(
            "(() => { const t = performance.now(); for (let n = 0; n < 5; n++) "
            "nightshiftAtlas.paint(); return (performance.now() - t) / 5; })()"
        ))  # fmt: skip
        assert opened.count() == "50,000 / 50,000"
        opened.page.context.close()
    size = path.stat().st_size
    print(f"open {min(seconds):.2f} s, frame {min(frames):.0f} ms, {size:,} bytes")
    assert min(seconds) < 2
    # Milliseconds of script a frame; on a machine that has more to do than cores, as many times so.
    assert min(frames) < 100 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


# --- in MLflow's own viewer --------------------------------------------------------------------

OWNED = "<script>top.document.title = document.title = 'owned'; alert(1)</script>"
FOREIGN = [
    f"{OWNED} oven butter flour",
    '<img src=x onerror="alert(1)"> roast garlic',
    "שלום עולם oven salt",
    "👩‍🍳🔥 oven roast salt 🧈",
    "银行卡丢失了怎么办，请帮我挂失",
]


@contextmanager
def mlflow_ui(store: str, folder: Path) -> Iterator[str]:
    """MLflow's own pages over a store; their address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [Path(sys.executable).parent / "mlflow", "ui", "--backend-store-uri", store,
               "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]  # fmt: skip
    url, log = f"http://127.0.0.1:{port}", folder / "ui.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, start_new_session=True,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "1"},
        )  # fmt: skip
    try:
        until = time.monotonic() + 90
        while time.monotonic() < until:
            assert process.poll() is None, log.read_text()
            try:
                if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.3)
        yield url
    finally:
        # It has a server below it, which waits for whoever still listens.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


@pytest.mark.timeout(600)
def test_the_page_of_a_night_is_read_in_mlflows_viewer_and_does_nothing_there(
    browser: Browser, house: House
) -> None:
    house.declare(report={"map_points": 200, "explained": 1}, clusters={"k": 3})
    house.drop("one.jsonl", [*rows(20), *({"text": text} for text in FOREIGN)])
    house.work("n1")
    [night] = house.lake.nights()
    with mlflow_ui(load_settings(house.config).mlflow, house.folder) as url:
        run = httpx.get(
            f"{url}/ajax-api/2.0/mlflow/runs/get", params={"run_id": night["mlflow_run"]}
        ).json()["run"]["info"]
        page = browser.new_context(viewport={"width": 1500, "height": 1000}).new_page()
        complaints: list[str] = []
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.goto(f"{url}/#/experiments/{run['experiment_id']}/runs/{run['run_id']}"
                  "/artifacts/report.html")  # fmt: skip
        viewer = page.wait_for_selector("iframe", timeout=120_000)
        assert viewer is not None
        # Scripts may run there, as the page of another place: no cookie of MLflow is within reach.
        assert viewer.get_attribute("sandbox") == "allow-scripts"
        frame = viewer.content_frame()
        assert frame is not None
        frame.wait_for_selector("#map-legend button", timeout=60_000)
        assert frame.locator("h1").inner_text().startswith(house.name)
        told = frame.evaluate("document.getElementById('map-texts').textContent").split("\n")
        on_map = [frame.evaluate("nightshiftAtlas.text", n) for n in range(len(told) - 1)]
        assert {*FOREIGN} <= {*on_map, *told}
        page.keyboard.press("Tab")
        assert complaints == []
        assert "owned" not in (page.title(), frame.title())
        assert frame.evaluate("document.querySelectorAll('script').length") == 3
        assert frame.locator("img").count() == 0
        shown = frame.locator("body").inner_text()
        assert sum(text[:25] in shown for text in FOREIGN) >= 3
