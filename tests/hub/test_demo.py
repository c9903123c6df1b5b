import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

import mstr_hf
from mstr_hf import cli
from mstr_hf.hub.cache import CHECKPOINT

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "refiner-6lang.json").read_text(encoding="utf-8"))
SCREENS = {"desktop": (1280, 1000, False), "phone": (390, 844, True)}

gradio = pytest.importorskip("gradio", reason="missing: gradio: pip install '.[demo]'")


def reading(**changed) -> dict:
    return {
        "text": "فندق",
        "score": 0.5,
        "script": "Arab",
        "characters": [{"char": "ف", "score": 0.9, "alternatives": [{"char": "ق", "score": 0.1}]}],
        "alternatives": [{"text": "قندق", "score": 0.25}],
        "spotter_text": "فندو",
        **changed,
    }


def test_reading_is_laid_out_in_the_direction_of_its_script():
    from mstr_hf.hub.demo import render

    arabic = render(reading())
    assert '<h2 dir="rtl">فندق</h2>' in arabic and '<ol class="characters" dir="rtl">' in arabic
    assert "Arabic" in arabic and "50.0%" in arabic and "فندو" in arabic and "قندق" in arabic
    marks = [{"char": "ि", "score": 0.4, "alternatives": []}, {"char": "\u200d", "score": 1, "alternatives": []}]
    hindi = render(reading(text="कि", script="Deva", characters=marks, spotter_text="कि"))
    assert '<h2 dir="ltr">' in hindi and '<li class="unsure"><b>◌ि</b>40%' in hindi
    assert "<b>joiner</b>" in hindi and "(the same)" in hindi


def test_what_was_read_is_no_markup():
    from mstr_hf.hub.demo import render

    page = render(reading(text="<script>", spotter_text="&", alternatives=[{"text": "<b>", "score": 0}]))
    assert "&lt;script&gt;" in page and "<script>" not in page and "<b></bdi>" not in page
    assert "No characters" in render(reading(text=""))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """URL of the page with the bundled checkpoint."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    folder = tmp_path_factory.mktemp("demo")
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(mstr_hf.__file__).parents[1]),
        "GRADIO_TEMP_DIR": str(folder / "gradio"),
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    command = [sys.executable, "-m", "mstr_hf.cli", "demo", "--port", str(port)]
    log = folder / "log"
    with log.open("w") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as server:
        url = f"http://127.0.0.1:{port}"
        try:
            while True:
                assert server.poll() is None, log.read_text()
                try:
                    urllib.request.urlopen(url)
                    break
                except urllib.error.URLError:
                    time.sleep(0.2)
            yield url
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    selenium = pytest.importorskip("selenium.webdriver", reason="missing: selenium: pip install '.[test]'")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("missing: chromium: apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "no-first-run",
        "disable-background-networking",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{flag}")
    driver = selenium.Chrome(options, selenium.ChromeService(shutil.which("chromedriver")))
    driver.set_page_load_timeout(120)
    yield driver
    driver.quit()


def wait(condition, seconds: float = 120):
    """Waits until the condition holds; returns its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError("nothing came of it")


@pytest.mark.parametrize("screen", SCREENS)
def test_words_are_read_in_the_browser(demo, browser, screen, tmp_path):
    width, height, mobile = SCREENS[screen]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(demo)

    def find(selector: str) -> list:
        return browser.find_elements("css selector", selector)

    def heading() -> str:
        # In one step, since the page may be redrawn between two.
        return browser.execute_script("return document.querySelector('.mstr h2')?.textContent")

    def shoot(name: str) -> None:
        folder = Path(os.environ.get("MSTR_SCREENSHOTS", tmp_path))
        browser.save_screenshot(str(folder / f"{screen}-{name}.png"))
        # Nothing sticks out sideways.
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")

    # An example of each script is there, and a click on one reads it.
    wait(lambda: len(find(".gallery-item img")) == 12)
    shoot("start")
    find(".gallery-item")[-2].click()
    wait(lambda: heading() == GOLDEN["ar_1.jpg"]["text"])
    assert find(".mstr h2")[0].get_attribute("dir") == "rtl"
    first, second = find(".mstr .characters li")[:2]
    assert first.location["x"] > second.location["x"] or first.location["y"] < second.location["y"]
    shoot("arabic")

    browser.get(demo)
    wait(lambda: len(find(".gallery-item img")) == 12)
    find("input[type=file]")[0].send_keys(str(CHECKPOINT / "samples" / "bn_2.jpg"))
    wait(lambda: heading() == GOLDEN["bn_2.jpg"]["text"])
    assert find(".mstr h2")[0].get_attribute("dir") == "ltr"
    shoot("bengali")

    # Characters of one language only.
    find("input[type=checkbox][name=en]")[0].click()
    english = {row.character for row in mstr_hf.build_vocabulary(mstr_hf.load_charsets(["en"])).rows}

    def alert() -> str:
        return "".join(element.text for element in find(".mstr[role=alert]"))

    # Letters that look like these, or none at all.
    wait(lambda: set(mstr_hf.normalise(text)) <= english if (text := heading()) else "No characters" in alert())

    Image.new("L", (900, 20)).save(tmp_path / "line.png")
    browser.get(demo)
    wait(lambda: len(find(".gallery-item img")) == 12)
    find("input[type=file]")[0].send_keys(str(tmp_path / "line.png"))
    wait(lambda: "more than 20 times as wide as high" in alert())
    shoot("too-wide")


def test_missing_extra_is_one_line(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "mstr_hf.hub.demo", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["demo"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("mstr: ") and "pip install 'mstr_hf[demo]'" in err and len(err.splitlines()) == 1
