"""Tests the page in Chromium: python test_page.py [SITE] [--reference PNG] [--screenshot PNG]. Needs selenium, chromium and chromedriver."""

import argparse
import base64
import gzip
import json
import shutil
import statistics
import struct
import tempfile
import time
import zlib
from pathlib import Path

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from chromium import Page, browser, server
from serve import ISOLATION

HERE = Path(__file__).parent
MODEL = HERE.parent / "models" / "hart-emoji"
# The image that is compared with the native program's: prompt and seed of `--reference`.
REFERENCE = ("a red heart on a yellow background", "7")
# Largest difference of a colour value from the native program's, which computes sums in another order.
TOLERANCE = 2
# Largest compressed size in bytes of everything but the model.
MAX_SIZE = 1_500_000
# Largest pause of the page as a share of an image's time. It would be nearly 1 if the page computed the image itself.
MAX_PAUSE = 0.5
# Requests of the screenshot: prompt, seed, number of images.
SCREENSHOT_REQUESTS = [
    ("an owl on a white background", 0, 1),
    ("a watermelon on a white background", 0, 1),
    ("a parrot", 1, 4),
    ("a rocket on a white background", 0, 1),
    ("a red apple on a light blue background", 1, 1),
    ("a red heart on a yellow background", 7, 1),
]
# Copies files of the shipped model to the browser's own file system, whose folder the picker then returns.
PICKER = """
const [names, done] = arguments;
const copy = async () => {
  const root = await (await navigator.storage.getDirectory()).getDirectoryHandle('picked', {create: true});
  for (const name of names) {
    const [part, file] = name.split('/');
    const folder = await root.getDirectoryHandle(part, {create: true});
    const writer = await (await folder.getFileHandle(file, {create: true})).createWritable();
    await (await fetch(document.body.dataset.model + name)).body.pipeTo(writer);
  }
  window.showDirectoryPicker = async () => root;
};
copy().then(() => done(null), (error) => done(String(error)));
"""


def check_generation(page, reference, downloads):
    """Images: previews in order, pixels equal to the native program's, the downloaded file, errors and cancellation."""
    prompt, seed = REFERENCE
    (url,) = page.generate(prompt, seed=seed)
    previews = page.js("return record.previews")
    steps = page.js("return record.steps")
    scales = int(next(step for step in steps if "/" in step).split("/")[1].split(",")[0])
    assert len(previews) == scales and all(preview["shown"] for preview in previews), (len(previews), scales)
    assert len({preview["data"] for preview in previews}) == scales, "previews are equal"
    order = [int(step.split("/")[0].split()[-1]) for step in steps if "/" in step]
    assert order == sorted(order) and set(order) == set(range(1, scales + 1)), order
    width, *pixels = page.pixels(url)
    assert width == 64 and page["seed-shown"].text == seed and "Finished" in page.live()
    image = page.driver.find_element(By.CSS_SELECTOR, ".tile.finished img")
    assert image.value_of_css_property("image-rendering") == "auto" and image.rect["width"] >= 256
    if reference:
        name = f"data:image/png;base64,{base64.b64encode(reference.read_bytes()).decode()}"
        expected = page_without_policy(page, name)
        difference = max(abs(a - b) for a, b in zip(pixels, expected[1:], strict=True))
        print(f"  largest difference from the native program: {difference} of 255")
        assert difference <= TOLERANCE, f"the image differs from the native program's by up to {difference}"

    # The same seed gives the same image, another one another image.
    assert page.pixels(page.generate(prompt, seed=seed)[0])[1:] == pixels
    assert page.pixels(page.generate(prompt, seed="8")[0])[1:] != pixels

    # The downloaded file has the settings in its text chunks.
    page.generate(prompt, seed=seed)
    page["download"].click()
    file = downloads / "a-red-heart-on-a-yellow-background-7.png"
    page.until(file.is_file)
    texts = png_texts(file.read_bytes())
    settings = json.loads(texts["hart"])
    assert (settings["prompt"], str(settings["seed"])) == (prompt, seed), texts
    assert texts["parameters"].startswith(f"{prompt}\nSteps: ") and "prompt" not in texts, texts

    # Errors name the field, and the image stays.
    for settings, words, field in [
        ({"prompt": ""}, "Enter a prompt", "prompt"),
        ({"prompt": "x", "seed": "one"}, "whole number", "seed"),
        ({"prompt": "x", "seed": "18446744073709551616"}, "whole number", "seed"),
        ({"prompt": "x", "count": "0"}, "from 1 to 16", "count"),
        ({"prompt": "x", "guidance": "1e9"}, "guidance", None),
    ]:
        page.submit(**settings)
        page.until(lambda: words.lower() in page["error"].text.lower())
        page.wait_until_idle()
        assert field is None or page.driver.switch_to.active_element == page[field]
        assert page.driver.find_elements(By.CSS_SELECTOR, ".tile.finished")

    # Escape cancels, and the image shown before comes back. The next image is not affected.
    page.submit("a guitar", seed=3, count=16)
    page.until(lambda: "Image 1 of 16, scale" in page["step"].text)
    page["prompt"].send_keys(Keys.ESCAPE)
    begin = time.monotonic()
    page.wait_until_idle()
    assert time.monotonic() - begin < 2
    assert page.live() == "Cancelled." and page["caption"].text == prompt and not page["error"].is_displayed()
    assert page.pixels(page.generate(prompt, seed=seed)[0])[1:] == pixels

    # Cancelling keeps the finished images of a request.
    page.submit("a guitar", seed=3, count=16)
    page.until(lambda: "Image 2 of 16, scale" in page["step"].text)
    page["cancel"].click()
    page.wait_until_idle()
    page.until(lambda: page["caption"].text == "a guitar")
    assert 1 <= len(page.driver.find_elements(By.CSS_SELECTOR, ".tile.finished")) < 16
    assert page.driver.switch_to.active_element == page["go"]

    # The dice sets a seed, and one of several images can be selected.
    page["dice"].click()
    dice = int(page["seed"].get_property("value"))
    page.generate("a parrot", seed=dice, count=4)
    tiles = page.driver.find_elements(By.CLASS_NAME, "tile")
    assert len(tiles) == 4
    tiles[2].click()
    assert page["seed-shown"].text == str(dice + 2) and tiles[2].get_attribute("aria-pressed") == "true"

    # A thumbnail restores images and settings.
    page.driver.find_element(By.CSS_SELECTOR, f'.thumb[aria-label="{prompt}, seed {seed}"]').click()
    values = [page[name].get_property("value") for name in ("prompt", "seed", "count")]
    assert values == [prompt, seed, "1"] and page["caption"].text == prompt, values

    # The largest seed is exact, although JavaScript's numbers are not.
    page.generate("a star", seed="18446744073709551615")
    assert page["seed-shown"].text == "18446744073709551615"


def page_without_policy(page, url):
    """Returns the pixels of an image that the page's policy would not load, in another window."""
    window = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    try:
        return page.pixels(url)
    finally:
        page.driver.close()
        page.driver.switch_to.window(window)


def check_keyboard(page):
    """Keyboard-only use, and names for screen readers."""
    unnamed = page.js(
        "return [...document.querySelectorAll('input, select, textarea, button, a')]"
        ".filter((e) => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).map((e) => e.outerHTML)"
    )
    assert unnamed == [], unnamed
    page.driver.refresh()
    page.until(lambda: "pixels" in page["model"].text and not page.is_busy())
    order = []
    for _ in range(8):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        element = page.driver.switch_to.active_element
        order.append(element.get_attribute("id") or element.tag_name)
    assert order == ["prompt", "count", "seed", "dice", "guidance", "go", "summary", "body"], order
    # Type, generate, tab to the download and activate it: without a mouse.
    page["prompt"].send_keys("a rocket", Keys.ENTER)
    page.until(lambda: "Finished" in page.live())
    for _ in range(8):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        if page.driver.switch_to.active_element == page["download"]:
            break
    assert page.driver.switch_to.active_element == page["download"]
    outline = page["download"].value_of_css_property("outline-style")
    assert outline == "solid", outline
    # Ctrl+Enter generates from any field, and the focus stays.
    page["guidance"].send_keys("3", Keys.CONTROL, Keys.ENTER)
    page.until(page.is_busy)
    page.wait_until_idle()
    assert page.driver.switch_to.active_element == page["guidance"]
    page["go"].send_keys(Keys.ENTER)
    page.until(page.is_busy)
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    page.wait_until_idle()
    assert page.driver.switch_to.active_element == page["go"] and page.live() == "Cancelled."
    # Screen readers get the progress and the result.
    assert page["bar"].get_attribute("role") == "progressbar" and page["live"].get_attribute("aria-live") == "polite"
    assert page["error"].get_attribute("role") == "alert"
    label = page.driver.find_element(By.CSS_SELECTOR, ".tile").accessible_name
    assert label.startswith("a rocket, seed"), label


def check_models(page, scratch, name):
    """Other models: chosen, dropped, incomplete and wrong ones."""
    prompt, seed = REFERENCE
    pixels = page.pixels(page.generate(prompt, seed=seed)[0])
    copy = shutil.copytree(MODEL, scratch / "other", ignore=shutil.ignore_patterns("*.png", "files.json"))

    def loaded(title):
        page.until(lambda: page["model"].text.startswith(f"{title}, ") and not page.is_busy())
        assert not page["error"].is_displayed(), page["error"].text
        assert page.pixels(page.generate(prompt, seed=seed)[0]) == pixels

    # A folder in the input element, and the way back.
    page.unfold(True)
    page["folder"].send_keys(str(copy))
    loaded("other")
    page["first"].click()
    loaded(name)
    assert not page["first"].is_displayed()
    # A dropped folder, its parts, and a folder above it.
    page.drop(copy)
    loaded("other")
    page.drop(*(copy / part for part in ("llm", "tokenizer", "text")))
    loaded("your model")
    shutil.move(copy / "text", scratch / "text")
    page.drop(copy, scratch / "text")
    loaded("other")
    # A folder of the picker, here one of the browser's own file system.
    problem = page.driver.execute_async_script(PICKER, [str(path.relative_to(MODEL)) for path in MODEL.glob("*/*.*")])
    assert problem is None, problem
    page["open"].click()
    loaded("picked")

    # The error names the problem, and the open model stays.
    def wrong(paths, *words):
        page.drop(*paths)
        page.error(*words)
        assert page["model"].text.startswith("picked")

    wrong([copy], "text model is missing", "Qwen2-VL-1.5B-Instruct")
    wrong([copy / "llm"], "part of a model")
    wrong([copy / "tokenizer"], "not a model's folder")
    wrong([copy / "llm" / "config.json"], "no folders")
    empty = scratch / "empty"
    empty.mkdir()
    wrong([empty], "empty")
    wrong([HERE.parent / "recipes"], "not a model's folder")
    shutil.move(scratch / "text", copy / "text")
    several = scratch / "several"
    for folder in ("first", "second"):
        (several / folder / "llm").mkdir(parents=True)
        (several / folder / "llm" / "config.json").write_text("{}")
    wrong([several], "several models", "first", "second")
    weights = (copy / "llm" / "model.safetensors").read_bytes()
    for content, words in [(weights[: len(weights) // 2], ["model.safetensors"]), (b"<!doctype html>", ["model.safetensors"]), (None, ["llm"])]:
        if content is None:
            (copy / "llm" / "model.safetensors").unlink()
        else:
            (copy / "llm" / "model.safetensors").write_bytes(content)
        wrong([copy], *words)
    # A file that no memory can hold. It takes no space on the disk.
    with open(copy / "llm" / "model.safetensors", "wb") as file:
        file.truncate(6 << 30)
    wrong([copy], "6144 MB")
    (copy / "llm" / "model.safetensors").write_bytes(weights)
    (copy / "text" / "tokenizer.json").write_text('{"model": 1}')
    wrong([copy], "tokenizer.json")
    assert page.pixels(page.generate(prompt, seed=seed)[0]) == pixels


def check_looks(page, scratch):
    """No horizontal scrolling on small screens, dark mode, and sizes of touch targets."""
    page.unfold(True)
    page.generate("long" * 100, seed="18446744073709551615", count=5)
    for width in (390, 360, 320, 761, 1001, 1200):
        page.resize(width, 844)
        inner, wide = page.js("return [innerWidth, document.documentElement.scrollWidth]")
        assert inner == width and wide <= width, f"{wide} pixels wide in a window of {inner}"
    page.unfold(False)
    page.resize(390, 844, 2, mobile=True)
    page.generate("a parrot", seed="1")
    # The whole image is on the screen, without scrolling by hand, and what is tapped is large enough.
    top, bottom, wide = page.js(
        "const {top, bottom} = document.querySelector('.tile').getBoundingClientRect();"
        "return [top, bottom, document.documentElement.scrollWidth]"
    )
    assert top >= 0 and bottom <= 844 and wide <= 390, (top, bottom, wide)
    for name in ("go", "dice", "download", "copy"):
        size = page[name].rect
        assert size["height"] >= 30 and size["width"] >= 40, (name, size)
    page.driver.save_screenshot(str(scratch / "phone.png"))
    light = page.js("return getComputedStyle(document.body).backgroundColor")
    page.media(prefers_color_scheme="dark")
    page.resize(1200, 800)
    assert page.js("return getComputedStyle(document.body).backgroundColor") != light
    page.driver.save_screenshot(str(scratch / "dark.png"))
    page.media()


def check_load(driver, url):
    """Loading shows its progress, can be cancelled, and a request made meanwhile is run after it."""
    page = Page(driver, url, load=False)
    page["prompt"].send_keys("a star", Keys.ENTER)
    page.until(lambda: page.live().startswith("Finished"))
    assert any("Loading" in step for step in page.js("return record.steps")), page.js("return record.steps")
    page["prompt"].send_keys(Keys.ENTER)
    page.wait_until_idle()


def png_texts(data):
    """Returns the text chunks of a PNG file."""
    texts, at = {}, 8
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0]
        if kind in (b"tEXt", b"iTXt"):
            key, text = body.split(b"\0", 1)
            texts[key.decode()] = (text.split(b"\0", 4)[-1] if kind == b"iTXt" else text).decode()
        at += 12 + length
    return texts


def measure(page, count=9):
    """Returns the median seconds of an image, from the key press to the displayed image. Records the longest pause of the page."""
    times = []
    page.js("record.pauses = 0")
    for seed in range(count):
        page.generate("a red heart on a yellow background", seed=seed)
        times.append(page.js("return record.end - record.start") / 1000)
    return statistics.median(times)


def check_crash(page):
    """After a crash of the engine, which is told here that its worker has ended, the next image is generated by a fresh one."""
    page.submit("a rocket", seed=1, count=16)
    page.until(lambda: "Image 2 of 16, scale" in page["step"].text)
    page.js("record.workers.at(-1).onerror({message: 'as the test wishes'})")
    page.error("as the test wishes")
    assert page.driver.find_elements(By.CSS_SELECTOR, ".tile.finished")
    page.generate("a rocket", seed=1)


def check_size(site):
    """The files without the model are small when a server compresses them."""
    for pkg in filter(lambda pkg: (site / pkg).is_dir(), ("pkg", "pkg/threads")):
        files = [file for file in site.glob("*.*") if file.is_file()]
        files += [file for file in (site / pkg).glob("*") if file.suffix in (".js", ".wasm")]
        size = sum(len(gzip.compress(file.read_bytes(), 9)) for file in files)
        print(f"{size / 1e6:.2f} MB with {pkg}, compressed by gzip")
        assert size <= MAX_SIZE, size


def check_failures(scratch, site):
    """Pages that can't work say why."""
    with browser(scratch) as driver:
        # Opened as a file, where browsers load no modules.
        driver.get((site / "index.html").as_uri())
        assert "Open it through a web server" in driver.find_element(By.ID, "images").text
        broken = scratch / "broken"
        shutil.copytree(site, broken, symlinks=False)
        model = next(broken.glob("*/llm")).parent
        with server(broken, {}) as address:
            # A file of the model is missing: the error names it, and Generate tries again.
            weights = model / "llm" / "model.safetensors"
            weights.rename(scratch / "weights")
            page = Page(driver, f"{address}/", load=False)
            page.error("llm/model.safetensors")
            (scratch / "weights").rename(weights)
            page.submit("a star")
            page.until(lambda: page.live().startswith("Finished"))
        with server(broken, ISOLATION) as address:
            # An isolated page uses one thread if the program with threads has not been built.
            shutil.rmtree(broken / "pkg" / "threads", ignore_errors=True)
            assert Page(driver, f"{address}/")["threads"].text == "1 thread"
            # The program is missing.
            shutil.rmtree(broken / "pkg")
            Page(driver, f"{address}/?again", load=False).error("pkg/hart")
    with browser(scratch) as driver:
        # A browser without SIMD.
        hide = "const validate = WebAssembly.validate; WebAssembly.validate = () => false;"
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": hide})
        with server(site, {}) as address:
            Page(driver, f"{address}/", load=False).error("SIMD")


def check_readme(scratch, site):
    """The page of the README shows previews and the image on its canvas."""
    folder = scratch / "readme"
    folder.mkdir()
    for file in site.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "own.html").write_text("<!doctype html>" + (HERE / "README.md").read_text().split("```html\n")[1].split("```")[0])
    count = "window.shown = 0; const put = CanvasRenderingContext2D.prototype.putImageData;"
    count += "CanvasRenderingContext2D.prototype.putImageData = function (...rest) { window.shown++; put.apply(this, rest); };"
    with server(folder, {}) as address, browser(scratch) as driver:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": count})
        page = Page(driver, f"{address}/own.html", load=False)
        page.until(lambda: page.js("return window.shown") > 6)
        data = page.js("return document.getElementById('canvas').getContext('2d').getImageData(0, 0, 64, 64).data")
        assert len(set(data.values() if isinstance(data, dict) else data)) > 10


def check_everything(scratch, site, reference, screenshot):
    (name,) = [folder.parent.name for folder in site.glob("*/llm")]
    kinds = [("without isolation", {}), ("isolated", ISOLATION)]
    if not (site / "pkg" / "threads").is_dir():
        print("THREADS ARE NOT TESTED: build them with site.sh --threads")
        kinds.pop()
    for title, headers in kinds:
        print(f"{title}:", flush=True)
        # The page is served from a folder of the site, as on a shared server.
        root = scratch / title
        root.mkdir()
        (root / "below").symlink_to(site, target_is_directory=True)
        downloads = scratch / f"{title} downloads"
        downloads.mkdir()
        with server(root, headers) as address, browser(downloads) as driver:
            url = f"{address}/below/"
            check_load(driver, url)
            page = Page(driver, url)
            threads = page["threads"].text
            assert ("without isolation" in threads) == (not headers), threads
            seconds = measure(page)
            pause = page.js("return record.pauses") / 1000
            print(f"  {seconds:.2f} s per image, {threads}; the page paused for at most {pause:.2f} s", flush=True)
            assert pause < MAX_PAUSE * seconds, pause
            check_generation(page, reference, downloads)
            check_crash(page)
            check_keyboard(page)
            files = scratch / f"{title} models"
            files.mkdir()
            check_models(page, files, name)
            if not headers:
                check_looks(page, scratch)
            # Nothing is loaded from elsewhere, nothing is missing, and the page's policy allows all that it does.
            violations = page.js("return record.violations")
            assert violations == [], violations
            loaded = page.js("return performance.getEntriesByType('resource').map((entry) => entry.name)")
            assert all(name.startswith((url, f"blob:{address}")) for name in loaded), loaded
            log = [entry["message"] for entry in driver.get_log("browser")]
            assert log == [], log
            if screenshot and title == kinds[-1][0]:
                take_screenshot(page, url, screenshot)


def take_screenshot(page, url, file):
    page = Page(page.driver, url)
    page.resize(1200, 800)
    for prompt, seed, count in SCREENSHOT_REQUESTS:
        page.generate(prompt, seed=seed, count=count)
    page.js("document.activeElement.blur(); scrollTo(0, 0)")
    time.sleep(0.3)
    page.driver.save_screenshot(str(file))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", nargs="?", type=Path, default=HERE / "site", help="the folder that site.sh writes")
    parser.add_argument("--reference", type=Path, help="the native program's PNG file of the prompt and seed in REFERENCE")
    parser.add_argument("--screenshot", type=Path, help="PNG file for a screenshot of the page")
    parser.add_argument("--looks", type=Path, help="folder for screenshots of a phone and of dark mode")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scratch, site = Path(scratch), arguments.site.resolve()
        check_size(site)
        check_readme(scratch, site)
        check_failures(scratch, site)
        check_everything(scratch, site, arguments.reference, arguments.screenshot)
        if arguments.looks:
            for name in ("phone.png", "dark.png"):
                shutil.copy(scratch / name, arguments.looks)
    print("test_page: ok")


if __name__ == "__main__":
    main()
