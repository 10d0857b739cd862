"A browser without a window, and what a page in it has asked for and complained of."

import json
import shutil

import pytest
from selenium import webdriver


def start():
    "The browser; a test that needs it is skipped where there is none."
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no chromium with its driver here")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    flags = "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --use-gl=angle".split()
    flags += "--disable-background-networking --use-angle=swiftshader --enable-unsafe-swiftshader".split()
    for flag in flags:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_script_timeout(400)
    return driver


def errors(browser) -> list:
    "What went wrong in scripts since the last call."
    lines = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    return [line["message"] for line in lines if line["source"] != "network"]


def requests(browser) -> set:
    "The addresses that were asked for since the last call."
    messages = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    asked = [
        each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"
    ]
    return {address for address in asked if not address.startswith(("data:", "blob:"))}
