"""The report in a real browser: pointing, walking by keyboard, switching budgets, phone width, nothing from outside.

Needs Debian's `chromium` and `chromium-driver`; skipped, with the reason run, where they are missing.
"""

from __future__ import annotations

import shutil
import time

import pytest

import tiny
from fsr import FSR, ClipTwin
from fsr.view.comparison import compare_methods
from fsr.view.report import render

selenium = pytest.importorskip("selenium", reason="selenium is not installed (pip install fsr-vlm[test])")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium or chromedriver (apt-get install chromium chromium-driver)"
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="module")
def comparison(llava, processor):
    twin = ClipTwin.from_clip(tiny.clip(tower=llava.model.vision_tower), tiny.word_tokenizer(ends=True), sign=1)
    methods = [FSR(keep=12), FSR(keep=5)]
    questions, options = ["where is the cat ?"], dict(relevance=twin, max_new_tokens=2)
    return compare_methods(llava, processor, tiny.picture(3), questions, methods, **options)[0]


@pytest.fixture(scope="module")
def browser(comparison, tmp_path_factory):
    from selenium import webdriver

    folder = tmp_path_factory.mktemp("browser")
    file = folder / "report.html"
    file.write_text(render(comparison), encoding="utf-8")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={folder / 'profile'}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_window_size(1200, 900)
    driver.get(file.as_uri())
    yield driver
    driver.quit()


def kept_map(browser):
    """The map of the final tokens of the first view, scrolled into sight."""
    found = browser.execute_script(
        "const m = [...document.querySelectorAll('.panel:not([hidden]) svg[data-view]')].pop();"
        "m.scrollIntoView({block: 'center'}); return m"
    )
    return found


def point_at(browser, figure, row):
    from selenium.webdriver.common.action_chains import ActionChains

    box = browser.execute_script("const b = arguments[0].getBoundingClientRect(); return [b.width, b.height]", figure)
    x = box[0] * ((row % 6 + 0.5) / 6 - 0.5)
    y = box[1] * ((row // 6 + 0.5) / 6 - 0.5)
    ActionChains(browser).move_to_element_with_offset(figure, round(x), round(y)).perform()
    # A busy machine delivers the movement late, and one that lands during a layout change not at all: nudge once more.
    for nudge in (1, -1, 1, -1):
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            if (
                browser.execute_script("return getComputedStyle(document.getElementById('tip')).visibility")
                == "visible"
            ):
                return
            time.sleep(0.02)
        ActionChains(browser).move_by_offset(nudge, 0).perform()


def tooltip(browser):
    return browser.execute_script(
        "const t = document.getElementById('tip'), b = t.getBoundingClientRect();"
        "const look = getComputedStyle(t).visibility;"
        "return [look, t.innerText, b.left, b.top, b.right, b.bottom, innerWidth, innerHeight]"
    )


def test_pointing_tells_stage_rank_scores_and_merges(browser, comparison):
    s = comparison.runs[0].selection
    figure = kept_map(browser)
    focus = int(s.rows[s.stage == 0][0])
    step = sum(int(o) < int(s.order[s.stage == 0][0]) for o in s.order[s.stage == 0]) + 1
    point_at(browser, figure, focus)
    visible, text, left, top, right, bottom, width, height = tooltip(browser)
    assert visible == "visible" and f"Focus, {step} of {s.n_focus}" in text
    assert f"Row {focus // 6 + 1}, column {focus % 6 + 1}" in text
    assert all(word in text for word in ("saliency", "relevance", "priority", "rank"))
    assert 0 <= left and 0 <= top and right <= width and bottom <= height
    merged = (s.merged_into >= 0).nonzero()[:, 0].tolist()
    assert merged, "this comparison must merge something"
    anchor = int(s.merged_into[merged[0]])
    point_at(browser, figure, merged[0])
    assert f"Absorbed by row {anchor // 6 + 1}, column {anchor % 6 + 1}" in tooltip(browser)[1]
    point_at(browser, figure, anchor)
    assert "absorbed" in tooltip(browser)[1] and "Scan, step" in tooltip(browser)[1]
    dropped = next(i for i in range(36) if i not in s.rows.tolist() and i not in merged)
    point_at(browser, figure, dropped)
    near = comparison.runs[0].nearest[dropped]
    text = tooltip(browser)[1]
    assert "Dropped" in text and "nearest kept" in text and f"row {near // 6 + 1}, column {near % 6 + 1}" in text


def test_walking_by_keyboard_is_read_out(browser, comparison):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    s = comparison.runs[0].selection
    figure = kept_map(browser)
    browser.execute_script("hide(); document.querySelector('summary').focus()")
    browser.execute_script("arguments[0].focus({focusVisible: true})", figure)
    start = int(s.rows[s.order == 0])
    said = browser.find_element(By.ID, "said")
    assert f"token {start}" in said.get_attribute("textContent")
    key, wanted = (Keys.ARROW_RIGHT, start + 1) if start % 6 < 5 else (Keys.ARROW_LEFT, start - 1)
    figure.send_keys(key)
    assert f"token {wanted}." in said.get_attribute("textContent")
    down, below = (Keys.ARROW_DOWN, wanted + 6) if wanted < 30 else (Keys.ARROW_UP, wanted - 6)
    figure.send_keys(down)
    assert f"token {below}." in said.get_attribute("textContent")
    figure.send_keys(Keys.ESCAPE)
    assert tooltip(browser)[0] == "hidden"


def test_budgets_switch_the_steps_and_the_score_maps(browser):
    panels = "return [...document.querySelectorAll('.panel')].map(p => p.hidden)"
    follow = "return [...document.querySelectorAll('svg[data-follow]')].map(m => m.dataset.view)"
    assert browser.execute_script(panels) == [False, True]
    browser.execute_script("document.querySelector('label[for=b1]').click()")
    assert browser.execute_script(panels) == [True, False]
    assert set(browser.execute_script(follow)) == {"1"}
    browser.execute_script("document.querySelector('label[for=b0]').click()")
    assert browser.execute_script(panels) == [False, True]


def test_phone_width_has_no_sideways_scroll(browser):
    size = dict(width=390, height=800, deviceScaleFactor=2, mobile=True)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390
        figure = kept_map(browser)
        point_at(browser, figure, 5)
        visible, _, left, _, right, *_ = tooltip(browser)
        assert visible == "visible" and left >= 0 and right <= 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_dark_and_light_differ_and_text_stays_readable(browser):
    def luminance(color):
        parts = [int(v) / 255 for v in color.strip("rgb()").split(",")]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    seen = {}
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        paper, *inks = browser.execute_script(
            "const c = (q, k) => getComputedStyle(document.querySelector(q))[k];"
            "return [c('body', 'backgroundColor'), c('h1', 'color'), c('.lead', 'color'), c('figcaption', 'color')]"
        )
        seen[scheme] = paper
        for ink in inks:
            low, high = sorted([luminance(paper), luminance(ink)])
            assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, paper, ink)
    assert luminance(seen["light"]) > 0.8 > 0.2 > luminance(seen["dark"])


def test_nothing_was_loaded_and_nothing_went_wrong(browser):
    assert (
        browser.execute_script(
            "return performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).length"
        )
        == 0
    )
    assert browser.get_log("browser") == []
