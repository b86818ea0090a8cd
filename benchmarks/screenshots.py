"""The pictures of the report and the demo in docs/pictures, taken in Chromium. `python benchmarks/screenshots.py`

Needs Debian's `chromium` and `chromium-driver`, and the extras `test` and `demo`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
QUESTION = "what is right of the bicycle?"
SCALE, PORT = 1.25, 7871


def browser(folder: str) -> Any:
    """Chromium without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in ("headless", "no-sandbox", "disable-gpu", "hide-scrollbars", f"user-data-dir={folder}/profile"):
        options.add_argument(f"--{flag}")
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(str(shutil.which("chromedriver"))))


def shoot(driver: Any, name: str, width: int, height: int) -> None:
    """The window as it is, at most `width` x `height` CSS pixels, 256 colours."""
    image = Image.open(BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    image = image.crop((0, 0, round(width * SCALE), round(height * SCALE)))
    image.quantize(256, dither=Image.Dither.NONE).save(PICTURES / f"{name}.png", optimize=True)


def size(driver: Any, width: int, height: int, scheme: str = "light") -> None:
    """Set the viewport, its pixels and its colours."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": SCALE, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


def until(test: Callable[[], object]) -> None:
    """Wait a minute at most; pages that are being redrawn count as not there yet."""
    for _ in range(600):
        try:
            if test():
                return
        except Exception as error:
            last = error
        time.sleep(0.1)
    raise TimeoutError(f"the page never got there: {last}")


def report(driver: Any, folder: str) -> None:
    """The upper part, light and dark, and the anchor that absorbed most, pointed at."""
    page = Path(folder) / "report.html"
    words = ["view", QUESTION, "--methods", "fsr,cdpruner,divprune,visionzip", "--keep", "32,16", "--out", str(page)]
    subprocess.run([sys.executable, "-m", "fsr", *words], check=True)
    driver.get(page.as_uri())
    for scheme in ("light", "dark"):
        size(driver, 1200, 2372, scheme)
        time.sleep(0.5)
        shoot(driver, f"report-{scheme}", 1200, 2372)
    size(driver, 1200, 660)
    find = "const h = [...document.querySelectorAll('.panel:not([hidden]) h3')].find(h => /Refine/.test(h.innerText));"
    figure = driver.execute_script(
        find + "const m = h.closest('.step, section, div').parentElement.querySelector('svg[data-view]') || h;"
        "h.scrollIntoView({block: 'start'}); window.scrollBy(0, -70); return m"
    )
    box = driver.execute_script("const b = arguments[0].getBoundingClientRect(); return [b.width, b.height]", figure)
    anchor = driver.execute_script(
        find + "const c = h.parentElement.parentElement.querySelector('td').innerText.match(/[0-9]+/g);"
        "return [+c[0] - 1, +c[1] - 1]"
    )
    x, y = (round(side * ((place + 0.5) / 12 - 0.5)) for side, place in zip(box, reversed(anchor)))
    ActionChains(driver).move_to_element_with_offset(figure, x, y).perform()
    ActionChains(driver).move_by_offset(1, 0).perform()
    until(
        lambda: driver.execute_script("return getComputedStyle(document.getElementById('tip')).visibility") != "hidden"
    )
    shoot(driver, "report-token", 1200, 660)


def demo(driver: Any) -> None:
    """The demo, comparing with cdpruner."""
    server = subprocess.Popen([sys.executable, "-m", "fsr", "demo", "--port", str(PORT), "--device", "cpu"])
    try:
        size(driver, 1280, 906)
        until(lambda: driver.get(f"http://127.0.0.1:{PORT}") is None)
        text = "return (document.querySelector('#answer') || {innerText: ''}).innerText"
        until(lambda: "of 144 tokens" in driver.execute_script(text))
        other = driver.find_element(By.CSS_SELECTOR, "#other input")
        other.click()
        other.send_keys(Keys.CONTROL + "a")
        other.send_keys("cdpruner", Keys.ENTER)
        until(lambda: "cdpruner" in driver.execute_script(text))
        box = driver.find_element(By.CSS_SELECTOR, "#question textarea, #question input")
        box.send_keys(Keys.CONTROL + "a")
        box.send_keys(QUESTION)
        driver.find_element(By.CSS_SELECTOR, "button#ask").click()
        until(lambda: "dog" in driver.execute_script(text))
        driver.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
        time.sleep(2)
        shoot(driver, "demo", 1280, 906)
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """All four."""
    with tempfile.TemporaryDirectory() as folder:
        driver = browser(folder)
        try:
            report(driver, folder)
            demo(driver)
        finally:
            driver.quit()


if __name__ == "__main__":
    main()
