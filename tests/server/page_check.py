"""Drives the page in Debian's Chromium: typing, detection, swapping, alternatives, keys, a phone.

Not collected by pytest: it needs a browser. `scripts/test-all` runs it where there is one:
page_check.py BUNDLE FOLDER

In FOLDER it leaves two pictures: `phone.png`, and `page.png`, which is docs/assets/page.png.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from m2m100_onnx import Translator
from serving import Server, serving

TEXT = "Open the file and save a copy."


class Page:
    """The page in a browser."""

    def __init__(
        self, server: Server, *, width: int = 1200, height: int = 800, dark: bool = False
    ) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
            options.add_argument(flag)
        options.add_experimental_option("prefs", {"intl.accept_languages": "de"})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService("/usr/bin/chromedriver")
        self.browser = webdriver.Chrome(options, service)
        media = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.browser.get(server.url)
        self.until(lambda: self.run("return document.documentElement.dataset.ready") == "yes")

    def run(self, script: str) -> object:
        return self.browser.execute_script(script)

    def until(self, true: Callable[[], object]) -> None:
        WebDriverWait(self.browser, 20, 0.05).until(lambda _: true())

    def text_of(self, name: str) -> str:
        return str(self.run(f"return document.getElementById('{name}').textContent"))

    def pick(self, name: str, code: str) -> None:
        Select(self.browser.find_element(By.ID, name)).select_by_value(code)

    def picked(self, name: str) -> str:
        return str(self.run(f"return document.getElementById('{name}').value"))

    def settled(self, translation: str) -> None:
        self.until(
            lambda: (
                self.text_of("translation") == translation
                and self.text_of("status") not in ("", "Translating…")
            )
        )


def check_work(page: Page, translator: Translator) -> None:
    """What a reader does with it."""

    def german(text: str, source: str = "en", target: str = "de") -> str:
        return translator.translate(text, source_lang=source, target_lang=target)

    # The browser's language is what is translated into, and the source is detected.
    assert (page.picked("source-lang"), page.picked("target-lang")) == ("auto", "de")
    field = page.browser.switch_to.active_element
    assert field.get_attribute("id") == "text"
    field.send_keys(TEXT)
    page.settled(german(TEXT))
    assert page.text_of("status") == "Detected: English."
    page.browser.find_element(By.ID, "more").click()
    page.until(lambda: len(page.browser.find_elements(By.CSS_SELECTOR, "#alternatives li")) > 0)
    # Keys alone: swap, clear, translate at once.
    field.send_keys(Keys.ALT, "s")
    page.settled(german(german(TEXT), "de", "en"))
    assert (page.picked("source-lang"), page.picked("target-lang")) == ("de", "en")
    field.send_keys(Keys.ESCAPE)
    page.until(lambda: page.text_of("translation") == "")
    page.pick("source-lang", "en")
    page.pick("target-lang", "fr")
    field.send_keys("Open the file.\n\nYes", Keys.CONTROL, Keys.ENTER)
    expected = f"{german('Open the file.', target='fr')}\n\n{german('Yes', target='fr')}"
    page.settled(expected)
    # Markup is shown as it is, and does nothing.
    page.run("document.getElementById('text').value = '<img src=x onerror=alert(1)> file'")
    page.browser.find_element(By.ID, "text").send_keys(Keys.CONTROL, Keys.ENTER)
    page.until(lambda: page.text_of("status") == "Done.")
    assert page.run("return document.querySelectorAll('#translation *').length") == 0
    # An error is said.
    page.run("document.getElementById('text').value = 'a'.repeat(20001)")
    page.browser.find_element(By.ID, "text").send_keys(Keys.CONTROL, Keys.ENTER)
    page.until(lambda: "exceeds text limit" in page.text_of("error"))


def check_manners(page: Page, server: Server) -> None:
    """No request to elsewhere, no error in the console but the one that was asked for."""
    urls = page.run("return performance.getEntriesByType('resource').map((each) => each.name)")
    assert isinstance(urls, list)
    assert all(str(url).startswith(server.url) for url in urls), urls
    severe = [each for each in page.browser.get_log("browser") if each["level"] == "SEVERE"]
    assert [each for each in severe if "413" not in each["message"]] == [], severe
    # Everything that is used has a name for a screen reader.
    nameless = page.run(
        "return [...document.querySelectorAll('button, select, textarea, input')].filter((each) => "
        "!each.textContent.trim() && !each.labels?.length && !each.ariaLabel).length"
    )
    assert nameless == 0


def check_documents(page: Page, server: Server, translator: Translator) -> None:
    """The page of the APIs lists all of them, and a request from it is answered."""
    page.browser.get(f"{server.url}/docs")
    page.until(lambda: page.run("return document.documentElement.dataset.ready") == "yes")
    paths = server.get("/openapi.json").json["paths"]
    names = {found["operationId"] for methods in paths.values() for found in methods.values()}
    shown = page.run("return [...document.querySelectorAll('details')].map((each) => each.id)")
    assert isinstance(shown, list)
    assert set(shown) == names
    expected = translator.translate("Open the file.", source_lang="en", target_lang="de")
    for name in ("translate", "lt_translate", "deepl_translate"):
        page.run(f"document.getElementById('{name}').open = true")
        page.browser.find_element(By.CSS_SELECTOR, f"#{name} button").click()
        output = page.browser.find_element(By.CSS_SELECTOR, f"#{name} pre")
        page.until(lambda shown=output: expected in shown.text and shown.text.startswith("200"))
    # Every request that is there to try works as it stands.
    page.run("for (const each of document.querySelectorAll('details')) each.open = true")
    for button in page.browser.find_elements(By.CSS_SELECTOR, "details button"):
        button.click()
    outputs = page.browser.find_elements(By.CSS_SELECTOR, "details pre")
    page.until(lambda: all(each.text not in ("", "…") for each in outputs))
    assert [each.text[:200] for each in outputs if not each.text.startswith("200")] == []


def check_shape(page: Page, colour: str) -> None:
    """It fits the window, and has the colours that the reader wants."""
    wide = page.run("return document.documentElement.scrollWidth - window.innerWidth")
    assert isinstance(wide, int)
    assert wide <= 0
    found = page.run("return getComputedStyle(document.body).backgroundColor")
    assert found == colour, found


def take_picture(server: Server, path: Path) -> None:
    """The page as the README shows it, small enough for a repository."""
    page = Page(server, width=940, height=640)
    page.pick("source-lang", "en")
    page.browser.find_element(By.ID, "text").send_keys(TEXT)
    page.until(lambda: page.text_of("status") == "Done.")
    page.browser.find_element(By.ID, "more").click()
    page.until(lambda: len(page.browser.find_elements(By.CSS_SELECTOR, "#alternatives li")) > 0)
    page.run("document.activeElement.blur()")
    page.browser.save_screenshot(str(path))
    page.browser.quit()
    assert path.stat().st_size < 80_000


def main(bundle: str, folder: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    translator = Translator(bundle, intra_op_num_threads=1)
    with serving(Path(bundle).resolve(), Path(folder)) as server:
        page = Page(server)
        check_work(page, translator)
        check_manners(page, server)
        check_documents(page, server, translator)
        check_manners(page, server)
        check_shape(page, "rgb(255, 255, 255)")
        page.browser.get(server.url)
        check_shape(page, "rgb(255, 255, 255)")
        page.browser.quit()
        page = Page(server, width=360, dark=True)
        check_shape(page, "rgb(20, 23, 27)")
        page.browser.save_screenshot(str(Path(folder) / "phone.png"))
        page.browser.quit()
        take_picture(server, Path(folder) / "page.png")
    print("the page works")


if __name__ == "__main__":
    main(*sys.argv[1:])
