"""The demo: what visitors may do and may not, without and with a browser. Skipped, with the reason, without Gradio."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from PIL import Image

import tiny
from fsr import ClipTwin
from fsr.cli import main
from fsr.demo.models import OfferedModels, method_names
from fsr.demo.sessions import Session, Sessions
from fsr.demo.uploads import Uploads
from fsr.errors import FSRError, QuestionError, UsageError
from fsr.methods.relevance import Relevance
from fsr.methods.saliency import Saliency
from fsr.signals.clip_twin import save_twin

QUESTION = "where is the cat ?"


def silent(share: float, text: str) -> None:
    assert 0 <= share <= 1 and text


@pytest.fixture(scope="module")
def folder(llava, processor, tmp_path_factory):
    """A saved model with its text tower, so that relevance works."""
    place = tmp_path_factory.mktemp("models") / "tiny"
    llava.save_pretrained(place)
    processor.save_pretrained(place)
    clip = tiny.clip(tower=llava.model.vision_tower)
    save_twin(place, ClipTwin.from_clip(clip, tiny.word_tokenizer(ends=True), sign=1))
    return str(place)


@pytest.fixture(scope="module")
def models(folder):
    return OfferedModels([folder], "cpu")


def test_second_question_and_other_budgets_encode_once(models, folder):
    session = Session(models)
    image = tiny.picture(1)
    first = session.ask(image, QUESTION, folder, ["fsr"], 9, silent)
    session.ask(image, "is there a dog ?", folder, ["fsr"], 9, silent)
    both = session.ask(image, QUESTION, folder, ["fsr", Saliency.name], 4, silent)
    assert session.encoded == 1
    assert [s.name for s in both.runs] == ["fsr", Saliency.name] and {s.keep for s in both.runs} == {4}
    assert first.unpruned.text == both.unpruned.text and first.runs[0].keep == 9
    session.ask(tiny.picture(2), QUESTION, folder, ["fsr"], 9, silent)
    assert session.encoded == 2


def test_wrong_requests_are_told_in_words(models, folder):
    session, image = Session(models), tiny.picture(1)
    for question, model, methods, error, words in [
        ("  ", folder, ["fsr"], QuestionError, "empty"),
        ("why " * 300, folder, ["fsr"], QuestionError, "at most"),
        (QUESTION, "/etc", ["fsr"], UsageError, "offers"),
        (QUESTION, folder, ["nosuch"], UsageError, "choose one of"),
    ]:
        with pytest.raises(error, match=words):
            session.ask(image, question, model, methods, 9, silent)
    with pytest.raises(FSRError):
        session.ask(image, QUESTION, folder, ["fsr"], 0, silent)


def test_without_text_tower_the_page_says_so(llava, processor):
    models = OfferedModels(["bare"], loader=lambda name, device: (llava, processor))
    offered = models.take("bare")
    assert offered.relevance == "none" and "without relevance" in offered.note
    assert "fsr" in offered.methods and Relevance.name not in offered.methods
    comparison = Session(models).ask(tiny.picture(1), QUESTION, "bare", ["fsr"], 9, silent)
    assert comparison.score("relevance") is None and any("without relevance" in n for n in comparison.notes)


def test_desks_are_per_visitor_and_limited(models):
    sessions = Sessions(models, most=2)
    a, b = sessions.of("a"), sessions.of("b")
    assert a is sessions.of("a") and a is not b
    sessions.of("c")
    assert len(sessions) == 2 and sessions.of("b") is not b  # b was unused for longest
    sessions.clear("c")
    assert len(sessions) == 1


def test_uploads_are_checked_held_and_deleted(tmp_path):
    folder, outside = tmp_path / "up", tmp_path / "secret.png"
    folder.mkdir()
    Image.new("RGB", (9, 9)).save(outside)
    own = Image.new("RGB", (5, 5), "red")
    uploads = Uploads(folder, [own])
    for payload in (None, {}, {"path": None}, {"path": str(outside)}, {"path": str(folder / ".." / "secret.png")}):
        with pytest.raises(UsageError):
            uploads.open(payload, "a")
    (folder / "link.png").symlink_to(outside)
    with pytest.raises(UsageError, match="not uploaded here"):
        uploads.open({"path": str(folder / "link.png")}, "a")
    broken = folder / "x.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    with pytest.raises(UsageError, match=r"holiday\.png is not a readable picture"):
        uploads.open({"path": str(broken), "orig_name": "holiday.png"}, "a")
    assert not broken.exists() and outside.exists()
    bomb = folder / "bomb.png"
    Image.new("1", (9000, 9000)).save(bomb)  # 10 kB on disk, 81 megapixels
    assert bomb.stat().st_size < 50_000
    with pytest.raises(UsageError, match="50 megapixels"):
        uploads.open({"path": str(bomb)}, "a")
    for name, picture in (("mine.png", Image.new("RGB", (7, 7), "blue")), ("scene.png", own)):
        picture.save(folder / name)
        for visitor in "ab":
            assert uploads.open({"path": str(folder / name)}, visitor).size == picture.size
    uploads.forget("a")
    assert (folder / "mine.png").exists()  # b still looks at it
    uploads.forget("b")
    assert not (folder / "mine.png").exists() and (folder / "scene.png").exists()


def test_methods_offered_prune_before_the_language_model():
    names = method_names()
    assert names[0] == "fsr" and "fastv" not in names


def test_command_without_gradio_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("fsr.cli.demo.find_spec", lambda name: None)
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    assert main(["demo"]) == 2
    assert "pip install 'fsr-vlm[demo]'" in capsys.readouterr().err
    assert "GRADIO_TEMP_DIR" not in os.environ


# ------------------------------------------------------------------------------------------------------- in a browser


CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="module")
def served(models):
    """(address, upload folder, sessions) of a running demo."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with tempfile.TemporaryDirectory() as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        pytest.importorskip("gradio", reason="gradio is not installed (pip install 'fsr-vlm[demo]')")
        from fsr.cli.demo import launch
        from fsr.demo.page import build

        page, sessions = build(models, Path(uploads))
        launch(page, "127.0.0.1", None, wait=False)
        yield page.local_url, Path(uploads), sessions
        page.close()
    os.environ.pop("GRADIO_TEMP_DIR")


@pytest.fixture
def browser(served, tmp_path):
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not installed (pip install fsr-vlm[test])"
    )
    if not (CHROMIUM and DRIVER):
        pytest.skip("no chromium or chromedriver (apt-get install chromium chromium-driver)")
    opened = []

    def start():
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in [*FLAGS, f"--user-data-dir={tmp_path / str(len(opened))}", "--window-size=1440,1200"]:
            options.add_argument(flag)
        opened.append(webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER)))
        opened[-1].get(served[0])
        wait_for(opened[-1], lambda d: "tokens" in answer(d))
        return opened[-1]

    yield start
    for driver in opened:
        driver.quit()


def wait_for(driver, test, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := test(driver):
                return found
        except Exception as error:  # the page is being redrawn
            last = error
        else:
            last = None
        time.sleep(0.1)
    raise AssertionError(f"the page never got there: {answer(driver)!r} {last}")


def answer(driver):
    return driver.execute_script("return (document.querySelector('#answer') || {innerText: ''}).innerText")


def type_question(driver, text):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    box = driver.find_element(By.CSS_SELECTOR, "#question textarea, #question input")
    box.send_keys(Keys.CONTROL + "a")
    box.send_keys(text)
    driver.find_element(By.CSS_SELECTOR, "button#ask").click()


def inside(driver, script):
    """Run a script in the report's frame."""
    from selenium.webdriver.common.by import By

    driver.switch_to.frame(driver.find_element(By.CSS_SELECTOR, "#report iframe"))
    try:
        return driver.execute_script(script)
    finally:
        driver.switch_to.default_content()


def test_ask_slide_and_compare(browser, served):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    driver = browser()
    assert "16 of 36 tokens" in answer(driver) and "all 36 tokens" in answer(driver)
    type_question(driver, QUESTION)
    wait_for(driver, lambda d: QUESTION in inside(d, "return document.title"))
    tokens = inside(driver, "return document.querySelectorAll('.sides [data-token]').length")
    assert tokens == 16
    box = driver.find_element(By.CSS_SELECTOR, "#keep input[type=range]")
    box.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    wait_for(driver, lambda d: "18 of 36 tokens" in answer(d))
    other = driver.find_element(By.CSS_SELECTOR, "#other input")
    other.click()
    other.send_keys(Keys.CONTROL + "a")
    other.send_keys(Saliency.name, Keys.ENTER)
    wait_for(driver, lambda d: f"{Saliency.name}, 18 of 36" in answer(d))
    assert inside(driver, "return document.querySelectorAll('.sides figure').length") == 2
    outside = "return performance.getEntriesByType('resource').map(r => r.name).filter(n => !n.includes('127.0.0.1'))"
    assert driver.execute_script(outside) == []
    assert [d.encoded for d in served[2]._sessions.values()][-1] == 1


def test_bad_input_gives_a_message_and_no_stack_trace(browser, served, tmp_path):
    from selenium.webdriver.common.by import By

    driver = browser()
    type_question(driver, "   ")
    wait_for(driver, lambda d: "question is empty" in d.page_source)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"this is no picture")
    driver.execute_script(
        "document.querySelector('#picture button[aria-label*=lear], #picture button[title*=lear]')?.click()"
    )
    field = wait_for(driver, lambda d: d.find_element(By.CSS_SELECTOR, "#picture input[type=file]"))
    field.send_keys(str(broken))
    wait_for(driver, lambda d: "not a readable picture" in d.page_source)
    assert "Traceback" not in driver.page_source and "/tmp" not in driver.find_element(By.TAG_NAME, "body").text


def test_upload_is_answered_and_gone_when_the_visitor_leaves(browser, served, tmp_path):
    from selenium.webdriver.common.by import By

    driver = browser()
    before = {p for p in served[1].rglob("*") if p.is_file()}
    tiny.picture(9).resize((600, 450)).save(tmp_path / "mine.png")
    driver.execute_script(
        "document.querySelector('#picture button[aria-label*=lear], #picture button[title*=lear]')?.click()"
    )
    wait_for(driver, lambda d: d.find_element(By.CSS_SELECTOR, "#picture input[type=file]")).send_keys(
        str(tmp_path / "mine.png")
    )
    wait_for(driver, lambda d: {p for p in served[1].rglob("*.png")} - before)
    wait_for(driver, lambda d: inside(d, "return document.querySelector('image').getAttribute('href').length") > 5000)
    driver.get("about:blank")
    wait_for(driver, lambda d: not {p for p in served[1].rglob("*") if p.is_file()} - before)


def test_two_visitors_at_once(browser, served):
    one, two = browser(), browser()
    type_question(one, "is there a dog ?")
    type_question(two, "where is the cat ?")
    wait_for(one, lambda d: "dog" in inside(d, "return document.title"))
    wait_for(two, lambda d: "cat" in inside(d, "return document.title"))
    assert "cat" not in inside(one, "return document.title")
