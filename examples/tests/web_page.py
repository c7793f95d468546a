"""Tests the web page in a browser: python web_page.py URL [--screenshot FILE]. Needs selenium, chromium and chromedriver."""

import argparse
import time
from pathlib import Path

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from headless import headless_chromium

# Number of diffusion steps that makes the small model slow enough to be watched and cancelled.
SLOW = "250"
# Requests of the screenshot: prompt, seed, number of images.
SCREENSHOT_REQUESTS = [
    ("an owl on a white background", 0, 1),
    ("a watermelon on a white background", 0, 1),
    ("a hamburger on a white background", 1, 4),
    ("a panda on a yellow background", 1, 1),
    ("a butterfly on a white background", 1, 1),
    ("a strawberry on a white background", 1, 1),
    ("a rocket on a white background", 0, 1),
    ("a parrot", 1, 4),
    ("a tropical fish on a white background", 2, 1),
    ("a penguin on a white background", 3, 1),
    ("a red apple on a light blue background", 1, 1),
    ("a red heart on a yellow background", 7, 1),
]
# Collects the addresses of all previews that are shown.
COUNT_PREVIEWS = """
window.previews = new Set();
new MutationObserver((changes) => changes.forEach(({target}) => {
  if (target.src?.startsWith('data:')) window.previews.add(target.src);
})).observe(document.getElementById('images'), {subtree: true, childList: true, attributes: true, attributeFilter: ['src']});
new MutationObserver((changes) => changes.forEach(({addedNodes}) => addedNodes.forEach((node) => {
  if (node.src?.startsWith('data:')) window.previews.add(node.src);
}))).observe(document.getElementById('images'), {subtree: true, childList: true});
"""


class Page:
    """The page, by the ids of its elements."""

    def __init__(self, driver, url):
        self.driver = driver
        self.wait = WebDriverWait(driver, 60, poll_frequency=0.05)
        self.url = url
        driver.get(url)
        self.until(lambda: "pixels" in self["model"].text)
        driver.execute_script(COUNT_PREVIEWS)

    def __getitem__(self, name):
        return self.driver.find_element(By.ID, name)

    def until(self, condition):
        return self.wait.until(lambda _: condition())

    def fill(self, name, value):
        # Sets the value as typing would, even if the element is hidden.
        self.driver.execute_script(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
            self[name],
            str(value),
        )

    def submit(self, prompt, seed="", count=1, steps="8"):
        for name, value in [("seed", seed), ("count", count), ("steps", steps)]:
            self.fill(name, value)
        self["prompt"].clear()
        self["prompt"].send_keys(prompt, Keys.ENTER)

    def wait_until_idle(self):
        """Waits until no request is running."""
        self.until(lambda: self["go"].is_enabled() and not self["working"].is_displayed())

    def generate(self, *arguments, **settings):
        self.submit(*arguments, **settings)
        self.wait_until_idle()
        assert not self["error"].is_displayed(), self["error"].text

    def tiles(self):
        return self.driver.find_elements(By.CSS_SELECTOR, ".tile.finished img")

    def thumbnails(self):
        return self.driver.find_elements(By.CSS_SELECTOR, "#thumbnails .thumb")

    def width_fits(self, width, height):
        self.resize(width, height)
        inner, wide = self.driver.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
        assert inner == width and wide <= width, f"{wide} pixels wide in a window of {inner}, wanted {width}"

    def resize(self, width, height, scale=1):
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def media(self, **features):
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def check_everything(page):
    # Previews appear before the image, and the image is loaded.
    page.generate("a red heart on a yellow background", seed=7)
    previews = page.driver.execute_script("return window.previews.size")
    assert previews >= 2, f"{previews} previews were shown"
    (image,) = page.tiles()
    page.until(lambda: image.get_property("complete"))
    assert image.get_property("naturalWidth") == 64 and image.get_attribute("src").endswith("/0.png")
    assert image.value_of_css_property("image-rendering") == "pixelated"
    assert page["seed-shown"].text == "7" and page["download"].get_attribute("href").endswith("?download")
    assert "Finished" in page["live"].get_property("textContent")
    assert len(page.thumbnails()) == 1

    # Errors are shown, and the shown image stays.
    for settings, words in [({"prompt": "", "seed": ""}, "enter a prompt"), ({"prompt": "x", "seed": "one"}, "whole number")]:
        page.submit(**settings)
        page.until(lambda: words in page["error"].text.lower())
        page.wait_until_idle()
        assert len(page.tiles()) == 1

    # Progress is shown, and Escape cancels. The image shown before comes back.
    page.submit("a rocket", seed=3, steps=SLOW)
    page.until(lambda: "scale 6/6" in page["step"].text.lower())
    assert int(page["bar"].get_attribute("aria-valuenow")) > 0 and not page["go"].is_enabled()
    page["prompt"].send_keys(Keys.ESCAPE)
    page.wait_until_idle()
    assert page["live"].get_property("textContent") == "Cancelled." and len(page.thumbnails()) == 1
    assert page["caption"].text.startswith("a red heart")

    # Cancelling keeps the finished images of a request.
    page.submit("a guitar", seed=3, count=16, steps="60")
    page.until(lambda: "image 3 of 16" in page["step"].text.lower())
    page["cancel"].click()
    page.wait_until_idle()
    assert page.driver.switch_to.active_element == page["go"]
    kept = (len(page.thumbnails()), len(page.tiles()))
    assert kept[0] == 2 and 2 <= kept[1] < 16, kept

    # A second page waits for its turn and shows that.
    page.submit("a guitar", seed=3, count=4, steps=SLOW)
    page.until(lambda: "scale" in page["step"].text.lower())
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    other = Page(page.driver, page.url)
    other.submit("a rocket")
    other.until(lambda: "waiting: one request is ahead of yours" in other["step"].text.lower())
    other["cancel"].click()
    other.wait_until_idle()
    assert "Cancelled." in other["images"].text
    page.driver.close()
    page.driver.switch_to.window(first)
    page["cancel"].click()
    page.wait_until_idle()

    # The dice sets a seed, and one of several images can be selected.
    page["dice"].click()
    seed = int(page["seed"].get_property("value"))
    page.generate("a parrot", seed=seed, count=4)
    tiles = page.driver.find_elements(By.CLASS_NAME, "tile")
    assert len(tiles) == 4
    tiles[2].click()
    assert page["seed-shown"].text == str(seed + 2) and tiles[2].get_attribute("aria-pressed") == "true"

    # A thumbnail restores images and settings, and the same settings give the same image.
    page.thumbnails()[-1].click()
    values = [page[name].get_property("value") for name in ("prompt", "seed", "count", "guidance", "steps")]
    assert values == ["a red heart on a yellow background", "7", "1", "2", "8"], values
    before = pixels(page)
    page["prompt"].send_keys(Keys.CONTROL, Keys.ENTER)
    page.until(lambda: not page["go"].is_enabled())
    page.wait_until_idle()
    assert pixels(page) == before and len(before) > 3000

    # Every control has a label, and Tab visits them in order.
    unnamed = page.driver.execute_script(
        "return [...document.querySelectorAll('input, select, textarea, button, a')]"
        ".filter(e => !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim())).map(e => e.outerHTML)"
    )
    assert unnamed == [], unnamed
    page["prompt"].click()
    order = ["prompt"]
    for _ in range(4):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        order.append(page.driver.switch_to.active_element.get_attribute("id"))
    assert order == ["prompt", "count", "seed", "dice", "guidance"], order

    # The page fits a phone, with all settings visible.
    page.driver.find_element(By.TAG_NAME, "summary").click()
    page.fill("seed", "18446744073709551615")
    page.generate("long" * 100, seed="18446744073709551615", count=5)
    for width in (360, 320, 761, 1001, 1200):
        page.width_fits(width, 740)
    page.driver.find_element(By.TAG_NAME, "summary").click()


def pixels(page):
    """Returns the pixels of the shown image as text."""
    (image,) = page.tiles()
    page.until(lambda: image.get_property("complete"))
    return page.driver.execute_script(
        "const c = document.createElement('canvas'); c.width = c.height = 64; const x = c.getContext('2d');"
        "x.drawImage(arguments[0], 0, 0); return x.getImageData(0, 0, 64, 64).data.join()",
        image,
    )


def screenshots(page, file):
    page.driver.refresh()
    page = Page(page.driver, page.url)
    page.resize(1200, 800)
    for prompt, seed, count in SCREENSHOT_REQUESTS:
        page.generate(prompt, seed=seed, count=count)
    page.driver.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
    time.sleep(0.3)
    page.driver.save_screenshot(str(file))
    # For visual inspection: dark mode, a run in progress, and a phone.
    if file.parent.name != "docs":
        page.media(prefers_color_scheme="dark")
        page.driver.save_screenshot(str(file.with_name("dark.png")))
        page.submit("a parrot", seed=1, count=4, steps=SLOW)
        page.until(lambda: "image 2 of 4" in page["step"].text.lower())
        page.until(lambda: len(page.driver.find_elements(By.CSS_SELECTOR, ".tile img")) > 1)
        page.driver.save_screenshot(str(file.with_name("working.png")))
        page.media()
        page.resize(360, 1500, 2)
        page.driver.save_screenshot(str(file.with_name("phone.png")))
        page["cancel"].click()
        page.wait_until_idle()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--screenshot", type=Path, help="PNG file for a screenshot of the page")
    arguments = parser.parse_args()
    with headless_chromium() as driver:
        page = Page(driver, arguments.url)
        check_everything(page)
        if arguments.screenshot:
            screenshots(page, arguments.screenshot)
        # The only message allowed in the browser's log is the request that fails on purpose.
        log = [e["message"] for e in driver.get_log("browser") if "/api/generate - Failed to load resource" not in e["message"]]
        assert log == [], log
    print("web_page: ok")


if __name__ == "__main__":
    main()
