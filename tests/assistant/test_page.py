"""The page in a real browser: a whole conversation by mouse and by keyboard, light and dark, on a desk and on a phone."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from assistant.service.serving import MakeBrain
from assistant.service.settings import Rate, Settings
from embedding.index.reader import open_live
from embedding.index.release import LivePointer
from embedding.tables.lake import Lake
from tests.assistant.serving import running
from tests.small_release import build_release, point_at

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TOKEN = "a token of some length"
SLOW_MS = 60_000
MANY = Rate(1_000, 10_000)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")

NAMELESS = """() => [...document.querySelectorAll('button, input:not([type=file]), textarea, a, dialog, summary')]
    .filter((it) => it.checkVisibility({ visibilityProperty: true }))
    .filter((it) => !(it.getAttribute('aria-label') || it.textContent.trim() || it.labels?.[0]?.textContent.trim()
        || document.getElementById(it.getAttribute('aria-labelledby'))?.textContent.trim()))
    .map((it) => it.outerHTML.slice(0, 200))"""
"""Controls that a screen reader could not name."""
CONTRAST = """(selectors) => {
    const parse = (colour) => {
        const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return canvas.getImageData(0, 0, 1, 1).data;
    };
    const light = ([r, g, b]) => {
        const [x, y, z] = [r, g, b].map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const behind = (it) => {
        for (let at = it; at; at = at.parentElement) {
            const colour = parse(getComputedStyle(at).backgroundColor);
            if (colour[3] === 255) return colour;
        }
        return [255, 255, 255];
    };
    return Object.fromEntries(selectors.map((selector) => {
        const it = document.querySelector(selector);
        const [a, b] = [light(parse(getComputedStyle(it).color)), light(behind(it))];
        return [selector, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
    }));
}"""
"""WCAG's contrast of some texts with what is behind them."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(lake_with_interests: Lake, small_brain: MakeBrain) -> Iterator[str]:
    settings = Settings(lake_with_interests.home, people=True, requests=MANY, chats=MANY)
    with running(settings, small_brain) as client:
        yield str(client.base_url)


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[Open]:
    """Opens the page; no test may leave an error in its console."""
    errors, contexts = list[str](), []

    def open_it(url: str = address, **options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SLOW_MS)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert not errors


def answered(page: Page, turns: int) -> None:
    """Waits for the last turn's end."""
    expect(page.locator(".turn")).to_have_count(turns)
    expect(page.locator(".turn .facts")).to_have_count(turns, timeout=SLOW_MS)


def test_a_whole_conversation(open_page: Open) -> None:
    page = open_page()
    expect(page.locator(".pin .open").first).to_be_visible(timeout=SLOW_MS)
    expect(page.locator("#release")).to_contain_text("pins")
    # A suggestion is answered, beside a grid of what was found.
    page.locator(".suggestion").first.click()
    answered(page, 1)
    expect(page.locator(".turn .badge")).to_have_text("Quick")
    expect(page.locator(".turn .reason")).not_to_be_empty()
    expect(page.locator(".turn .facts")).to_contain_text("first word after")
    expect(page.locator(".pin").first.locator(".frame:not(.loading) img")).to_be_visible()
    # A citation leads to its pin, whose card has the focus and the citation's number.
    cite = page.locator(".turn .answer .cite").first
    number = cite.inner_text()
    cite.click()
    focused = page.locator(".pin .open:focus")
    expect(focused.locator(".number")).to_contain_text(number)
    expect(page.locator(".pin.cited")).not_to_have_count(0)
    # More like it is a turn of its own, about that pin.
    page.locator(".pin:has(.open:focus) .more").click()
    answered(page, 2)
    expect(page.locator(".turn").nth(1).locator(".about")).to_be_visible()
    expect(page.locator("#pins-title")).to_contain_text("More like")
    # The first answer's pins come back when they are asked for.
    page.locator(".turn").first.locator(".link").click()
    expect(page.locator(".turn").first).to_have_class("turn current")
    # A tag narrows the pins, and the next question.
    chip = page.locator("#chips .chip").first
    tag = chip.inner_text()
    chip.click()
    expect(page.locator(".with-filter")).to_contain_text(tag)
    page.locator(".with-filter .remove").click()
    # Someone's interests, and pins for them.
    page.locator("#open-interests").click()
    page.locator(".person").first.click()
    expect(page.locator(".interest .bar").first).to_be_visible()
    page.get_by_role("button", name="Pins for me").click()
    expect(page.locator("#pins-title")).to_have_text("For you")
    expect(page.locator(".pin .why").first).to_contain_text("your")
    # Thinking, in its own words, by keyboard alone.
    page.locator("label", has_text="Thinking").click()
    page.locator("#words").fill("which of these would suit a poster for children?")
    page.keyboard.press("Enter")
    answered(page, 3)
    last = page.locator(".turn").nth(2)
    expect(last.locator(".badge")).to_have_text("Thinking")
    expect(last.locator("details.thinking p")).not_to_be_empty()
    page.locator("#new-chat").click()
    expect(page.locator(".turn")).to_have_count(0)


def test_the_keyboard_reaches_everything(open_page: Open) -> None:
    page = open_page()
    expect(page.locator(".pin .open").first).to_be_visible(timeout=SLOW_MS)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#words")).to_be_focused()
    page.keyboard.type("a flag, and why that one")
    page.keyboard.press("Enter")
    expect(page.locator("#send")).to_have_attribute("aria-label", "Stop")
    page.keyboard.press("Escape")
    expect(page.locator(".turn .foot")).to_contain_text("Stopped")
    expect(page.locator("#send")).to_have_attribute("aria-label", "Send")
    # One stop of the Tab key in the grid, the arrow keys within it.
    assert page.locator(".grid .open[tabindex='0']").count() == 1
    page.locator(".grid .open").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".pin .open").nth(1)).to_be_focused()
    page.keyboard.press("End")
    expect(page.locator(".pin .open").last).to_be_focused()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    expect(page.locator("#pin")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#pin")).to_be_hidden()
    expect(page.locator(".pin .open").first).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_can_be_read(open_page: Open, scheme: Any) -> None:
    page = open_page(color_scheme=scheme, reduced_motion="reduce")
    expect(page.locator(".pin .open").first).to_be_visible(timeout=SLOW_MS)
    assert page.evaluate(NAMELESS) == []
    page.locator(".suggestion").first.click()
    answered(page, 1)
    assert page.evaluate(NAMELESS) == []
    texts = [".asked p", ".answer", ".steps .reason", ".badge", ".cite", ".facts dt", ".facts dd", ".release", ".open .title"]
    texts += [".open .why", ".pins-note", "#chips .chip", ".modes span", "#interests-label", "h1", "#pins-title"]
    contrast = page.evaluate(CONTRAST, texts)
    assert {text: value for text, value in contrast.items() if value < 4.5} == {}
    assert page.evaluate("getComputedStyle(document.querySelector('.pin .open .frame')).transitionDuration") == "0s"
    assert page.locator("main, header, section[aria-labelledby]").count() >= 3 and page.locator("h1").count() == 1
    page.locator("#open-interests").click()
    expect(page.locator(".person").first).to_be_visible()
    assert page.evaluate(NAMELESS) == []


def test_a_phone_has_one_column_and_nothing_beside_it(open_page: Open, tmp_path: Path) -> None:
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, color_scheme="dark")
    expect(page.locator(".pin .open").first).to_be_visible(timeout=SLOW_MS)
    page.locator("#words").fill("a picture of an animal")
    page.locator("#send").click()
    answered(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    strip, talk, composer = (page.locator(name).bounding_box() for name in ("#grid", "#log", "#composer"))
    assert strip and talk and composer
    assert strip["y"] + strip["height"] <= talk["y"] + 1 and talk["y"] + talk["height"] <= composer["y"] + 1
    small = page.evaluate("""() => [...document.querySelectorAll('button')].filter((it) => it.checkVisibility())
        .map((it) => it.getBoundingClientRect()).filter((box) => box.width < 24 || box.height < 24).length""")
    assert small == 0, "everything can be hit with a finger"
    picture = Image.open(io.BytesIO(page.screenshot()))
    assert len(picture.convert("RGB").getcolors(2**20) or []) > 100, "it shows something"


def test_a_picture_is_shown_and_searched_by(open_page: Open, tmp_path: Path) -> None:
    page = open_page()
    picture = page.locator(".pin .frame img").first
    expect(picture).to_be_visible(timeout=SLOW_MS)
    address = picture.get_attribute("src")
    assert address
    file = tmp_path / "mine.webp"
    file.write_bytes(page.request.get(page.url.rstrip("/") + address).body())
    page.locator("#file").set_input_files(file)
    expect(page.locator(".with-picture img")).to_be_visible()
    page.locator("#send").click()
    answered(page, 1)
    expect(page.locator(".turn .sent")).to_be_visible()
    expect(page.locator("#pins-title")).to_have_text("Like your picture")
    (tmp_path / "note.txt").write_text("no picture")
    page.locator("#file").set_input_files(tmp_path / "note.txt")
    expect(page.locator(".with-warning")).to_contain_text("not a picture")


HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


@pytest.fixture
def hostile_lake(lake_with_interests: Lake, tmp_path: Path) -> Lake:
    """The lake with a release in which every title is a program."""
    lake = Lake(str(tmp_path / "lake"))
    shutil.copytree(lake_with_interests.home, lake.home)
    release = open_live(lake)
    ids, manifest = release.pin_ids(), release.manifest
    rows = release.describe(ids.tolist())
    pins: dict[str, list[Any]] = {name: [rows[pin][name] for pin in ids.tolist()] for name in ("board_id", "image_uri")}
    pins |= {"title": [HOSTILE] * len(ids), "tags": [[HOSTILE]] * len(ids)}
    names = ("ds", "encoder", "embedding_version", "days", "pins_version", "pin_embeddings_version")
    same: dict[str, Any] = {name: getattr(manifest, name) for name in names}
    build_release(lake, "hostile", release.vectors_of(ids), ids, pins=pins, **same)
    point_at(lake, LivePointer("hostile", embedding_version=manifest.embedding_version))
    return lake


def test_titles_are_text_and_a_token_is_asked_for_once(browser: Browser, hostile_lake: Lake, small_brain: MakeBrain) -> None:
    settings = Settings(hostile_lake.home, token=TOKEN, requests=MANY, chats=MANY)
    with running(settings, small_brain) as client:
        context = browser.new_context()
        page = context.new_page()
        page.goto(str(client.base_url))
        page.locator("#token").fill("not the token, surely")
        page.keyboard.press("Enter")
        expect(page.locator("#ask-wrong")).to_be_visible()
        page.locator("#token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator(".pin .frame img").first).to_be_visible(timeout=SLOW_MS)
        assert page.evaluate("Object.keys(sessionStorage)") == ["pinlake-token"]
        assert page.evaluate("Object.keys(localStorage)") == []
        # What others have written, and what oneself writes, is text wherever it comes up.
        expect(page.locator(".pin .title").first).to_contain_text("<script>")
        page.locator("#words").fill(f"a flag {HOSTILE}")
        page.keyboard.press("Enter")
        answered(page, 1)
        expect(page.locator(".asked p")).to_contain_text("<img src=x")
        page.locator(".pin .open").first.click()
        expect(page.locator("#pin-title")).to_contain_text("<script>")
        expect(page.locator("#pin .chip")).to_contain_text("<img")
        assert page.title() == "pinlake" and page.locator("img[src=x]").count() == 0
        context.close()


def test_a_service_that_is_gone_is_told_and_the_question_kept(
    browser: Browser, lake_with_interests: Lake, small_brain: MakeBrain
) -> None:
    context = browser.new_context()
    page = context.new_page()
    with running(Settings(lake_with_interests.home, requests=MANY, chats=Rate(1, 1)), small_brain) as client:
        page.goto(str(client.base_url))
        for turns in (1, 2):  # the second one comes too soon: told, and asked again by itself
            page.locator("#words").fill("a flag")
            page.keyboard.press("Enter")
            answered(page, turns)
    page.locator("#words").fill("another flag")
    page.keyboard.press("Enter")
    failed = page.locator(".failed")
    expect(failed).to_contain_text("cannot be reached", timeout=SLOW_MS)
    expect(failed.get_by_role("button", name="Try again")).to_be_visible()
    context.close()
