"""Chromium, a web server and the page's elements, for test_page.py. Needs selenium, chromium and chromedriver."""

import functools
import http.server
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from serve import Handler

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from headless import headless_chromium  # noqa: E402

# Runs in every document before its scripts: records what the page does.
RECORD = """
window.record = {previews: [], steps: [], pauses: 0, violations: [], workers: []};
window.Worker = class extends Worker { constructor(...rest) { super(...rest); record.workers.push(this); } };
document.addEventListener('securitypolicyviolation', (event) => record.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
addEventListener('DOMContentLoaded', () => {
  const put = CanvasRenderingContext2D.prototype.putImageData;
  CanvasRenderingContext2D.prototype.putImageData = function (image, ...rest) {
    const tile = this.canvas.closest('.tile');
    put.call(this, image, ...rest);
    record.previews.push({tile: [...tile.parentElement.children].indexOf(tile), data: image.data.join(), shown: this.canvas.isConnected});
  };
  new MutationObserver(() => record.steps.push(document.getElementById('step').textContent))
    .observe(document.getElementById('step'), {childList: true, characterData: true, subtree: true});
  document.addEventListener('keydown', (event) => event.key === 'Enter' && (record.start = performance.now()), {capture: true});
  new MutationObserver(() => document.querySelector('.tile.finished img') && (record.end = performance.now()))
    .observe(document.getElementById('images'), {childList: true, subtree: true});
  let last = performance.now();
  setInterval(() => { record.pauses = Math.max(record.pauses, performance.now() - last - 10); last = performance.now(); }, 10);
});
"""
PIXELS = """
const [url, done] = [arguments[0], arguments[1]];
const image = new Image();
image.onload = () => {
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext('2d');
  context.drawImage(image, 0, 0);
  done([image.naturalWidth, ...context.getImageData(0, 0, canvas.width, canvas.height).data]);
};
image.onerror = () => done(null);
image.src = url;
"""


@contextmanager
def server(folder, headers):
    """Serves a folder with additional headers. Yields its address."""

    class Quiet(Handler):
        headers_added = {"Cache-Control": "no-cache", **headers}

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as httpd:
        # A page that is left closes its connections.
        httpd.handle_error = lambda *_: None
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


@contextmanager
def browser(downloads, *flags):
    """Starts Chromium with an empty profile, and records what pages do."""
    with headless_chromium(*flags) as driver:
        driver.set_script_timeout(120)
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": RECORD})
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
        yield driver


class Page:
    """The page, by the ids of its elements."""

    def __init__(self, driver, url, load=True):
        self.driver = driver
        self.wait = WebDriverWait(driver, 120, poll_frequency=0.02)
        driver.get(url)
        if load:
            self.until(lambda: "pixels" in self["model"].text)
            self.wait_until_idle()

    def __getitem__(self, name):
        return self.driver.find_element(By.ID, name)

    def until(self, condition):
        return self.wait.until(lambda _: condition())

    def js(self, code, *arguments):
        return self.driver.execute_script(code, *arguments)

    def fill(self, name, value):
        self.js("arguments[0].value = arguments[1]", self[name], str(value))

    def submit(self, prompt, seed="", count=1, guidance=""):
        for name, value in [("seed", seed), ("count", count), ("guidance", guidance)]:
            self.fill(name, value)
        self["prompt"].clear()
        self["prompt"].send_keys(prompt, Keys.ENTER)

    def is_busy(self):
        return self["working"].is_displayed()

    def wait_until_idle(self):
        self.until(lambda: not self.is_busy())

    def generate(self, *arguments, **settings):
        """Generates images and returns their addresses."""
        self.wait_until_idle()
        self.js("record.previews = []; record.steps = []")
        self.submit(*arguments, **settings)
        self.wait_until_idle()
        assert not self["error"].is_displayed(), self["error"].text
        self.until(lambda: self.js("return [...document.querySelectorAll('.tile')].every((tile) => tile.matches('.finished'))"))
        return [image.get_attribute("src") for image in self.driver.find_elements(By.CSS_SELECTOR, ".tile.finished img")]

    def pixels(self, url):
        """Returns the width and the RGBA values of an image."""
        return self.driver.execute_async_script(PIXELS, url)

    def live(self):
        return self["live"].get_property("textContent")

    def error(self, *words):
        """Waits for an error with these words."""
        self.until(lambda: self["error"].is_displayed() and not self.is_busy())
        for word in words:
            assert word in self["error"].text, f"{word!r} is not in the error: {self['error'].text}"

    def unfold(self, unfolded):
        """Opens or closes the section about the model."""
        if self["open"].is_displayed() != unfolded:
            self["models"].find_element(By.TAG_NAME, "summary").click()

    def drop(self, *paths):
        """Drops files or folders on the page."""
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.driver.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 300, "data": data})
            if kind == "dragOver":
                self.until(lambda: self["drop"].is_displayed())
        assert not self["drop"].is_displayed()

    def resize(self, width, height, scale=1, mobile=False):
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile}
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": mobile})
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def media(self, **features):
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
