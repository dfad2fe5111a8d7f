"""The page in a real browser: `xlm-swcm try` until an interruption."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from modeling_xlm_swcm.conversion import convert


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("chromium") or not shutil.which("chromedriver"),
        reason="needs chromium and chromedriver, for example from apt-get install chromium chromium-driver",
    ),
]
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")


@pytest.fixture
def server(encoder_folder, tmp_path) -> Iterator[subprocess.Popen]:
    convert(encoder_folder, tmp_path / "model", languages=["zh", "ug"])
    command = [Path(sys.executable).with_name("xlm-swcm"), "try", tmp_path / "model", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    yield process
    process.kill()


@pytest.fixture
def browser(tmp_path) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield browser
    browser.quit()


def find(browser: webdriver.Chrome, css: str, text: str = ""):
    """Wait for a visible element with this text, and return it."""

    def look(browser):
        for element in browser.find_elements(By.CSS_SELECTOR, css):
            if element.is_displayed() and text in element.text:
                return element

    return WebDriverWait(browser, 60, ignored_exceptions=[Exception]).until(look, f"{css} {text}")


def field(browser: webdriver.Chrome, label: str):
    """Return the input that a label names."""
    return find(browser, "label", label).find_element(By.CSS_SELECTOR, "textarea, input")


def write(element, text: str):
    element.send_keys(Keys.CONTROL, "a")
    element.send_keys(text, Keys.TAB)


def open_page(server: subprocess.Popen, browser: webdriver.Chrome):
    address = next(
        found[0] for line in iter(server.stderr.readline, "") if (found := re.search(r"http://\S+\d", line))
    )
    browser.get(address)


def test_tall_letters_fit_and_a_narrow_screen_stacks_the_texts(server, browser):
    screen = {"width": 390, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    open_page(server, browser)
    source, output = field(browser, "Source text"), field(browser, "Output")
    assert source.size["width"] > 250 and output.rect["y"] > source.rect["y"] + source.size["height"]
    assert field(browser, "Beams").rect["y"] == field(browser, "Candidates").rect["y"]
    assert not any(message.is_displayed() for message in browser.find_elements(By.CSS_SELECTOR, ".messages"))
    assert source.value_of_css_property("line-height") == "25.2px"
    # A name in Tibetan needs 31 pixels with the fonts of Noto.
    assert find(browser, "input[aria-label='Target language']").size["height"] >= 31
    # The tab that is open has the accent of the theme.
    tab = find(browser, "[role=tab][aria-selected=true]")
    assert tab.value_of_css_property("color") == "rgba(15, 118, 110, 1)"
    browser.execute_script("document.body.classList.add('dark')")
    assert tab.value_of_css_property("color") == "rgba(20, 184, 166, 1)"


def test_a_reader_translates_uploads_and_reads_an_error(server, browser, tmp_path):
    open_page(server, browser)
    write(field(browser, "Source text"), "no wind")
    write(field(browser, "Candidates"), "2")
    assert field(browser, "Output").get_attribute("dir") == "rtl"
    assert [field(browser, name).get_attribute("lang") for name in ("Source text", "Output")] == ["zh", "ug"]
    find(browser, "button", "Generate").click()
    assert find(browser, "table[aria-label=Candidates] td[dir=rtl]")
    translation = field(browser, "Output").get_attribute("value")
    find(browser, "button", "Swap languages").click()
    WebDriverWait(browser, 10).until(lambda _: field(browser, "Source text").get_attribute("dir") == "rtl")
    WebDriverWait(browser, 10).until(lambda _: field(browser, "Output").get_attribute("dir") == "ltr")
    assert [field(browser, name).get_attribute("lang") for name in ("Source text", "Output")] == ["ug", "zh"]
    assert field(browser, "Source text").get_attribute("value") == (translation or "no wind")
    assert not field(browser, "Output").get_attribute("value")
    assert not browser.find_elements(By.CSS_SELECTOR, "table[aria-label=Candidates]")
    write(field(browser, "Source text"), "no wind")
    write(field(browser, "Beams"), "50")
    find(browser, "button", "Generate").click()
    message = "Beams must be a whole number from 1 to 16 (got 50). Use another number."
    assert find(browser, "[role=alert]").text == message
    write(field(browser, "Candidates"), "1")
    write(field(browser, "Beams"), "2.5")
    find(browser, "button", "Generate").click()
    assert find(browser, "[role=alert]", "(got 2.5). Use another number.")
    write(field(browser, "Beams"), "1")
    find(browser, "[role=tab]", "Tokens and attention").click()
    find(browser, "button", "Show attention").click()
    assert find(browser, ".map th", "</s>").value_of_css_property("text-align") == "right"
    (tmp_path / "in.txt").write_text("no wind\n\nno boat\n", encoding="utf-8")
    find(browser, "[role=tab]", "File").click()
    browser.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(tmp_path / "in.txt"))
    find(browser, ".file-preview", "in")
    find(browser, "button", "Generate file").click()
    assert find(browser, "[role=status]", "3 of 3 passages are finished.")
    assert find(browser, ".file-preview a[download*='in.zh']")
    server.send_signal(signal.SIGINT)
    assert server.wait(20) == 0
