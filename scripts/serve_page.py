#!/usr/bin/env python3
"""Tests the page of `opensora serve` in headless Chromium, and takes its picture for docs/deployment.md.

    apt-get install chromium chromium-driver
    scripts/serve_page.py target/release/opensora [--picture docs/images/serve.png]

Uses the page as a person does: writes a prompt, presses Ctrl+Enter, watches progress and previews, plays the
video, runs it again, cancels and deletes; with the keyboard alone, at the width of a phone, in light and dark, with
a token, and with more videos than the list has on a page. Any message of the browser's console is an error: the page's policy would show there. Needs
nothing but Python.
"""

import argparse
import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

PROMPT = "a yellow square falls over a gray background"
ENTER, TAB, CONTROL = "\ue007", "\ue004", "\ue009"


class Browser:
    """A session of WebDriver."""

    def __init__(self, port):
        self.root = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL)
        wait("chromedriver", lambda: self.send("GET", "/status")["ready"])
        options = {"args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"],
                   "binary": shutil.which("chromium")}
        wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        self.session = "/session/" + self.send("POST", "/session", {"capabilities": wanted})["sessionId"]

    def send(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.root + path, data=data, method=method,
                                         headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["value"]

    def post(self, path, body):
        return self.send("POST", self.session + path, body)

    def open(self, url):
        self.post("/url", {"url": url})

    def run(self, script):
        return self.post("/execute/sync", {"script": script, "args": []})

    def keys(self, text):
        """Types into whatever has the focus."""
        actions, held = [], []
        for key in text:
            actions.append({"type": "keyDown", "value": key})
            if key == CONTROL:
                held.append(key)
            else:
                actions.append({"type": "keyUp", "value": key})
        actions += [{"type": "keyUp", "value": key} for key in held]
        self.post("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def emulate(self, scheme):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.post("/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}})

    def resize(self, width, height):
        params = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.post("/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": params})

    def picture(self):
        return base64.b64decode(self.send("GET", self.session + "/screenshot"))

    def console(self):
        return self.post("/se/log", {"type": "browser"})

    def close(self):
        try:
            self.send("DELETE", self.session)
        finally:
            self.process.terminate()
            self.process.wait()


def wait(what, condition, limit=60):
    end = time.monotonic() + limit
    error = None
    while time.monotonic() < end:
        try:
            value = condition()
            if value:
                return value
        except Exception as raised:  # not there yet
            error = raised
        time.sleep(0.05)
    raise SystemExit(f"FAILED: {what} does not happen: {error}")


def check(what, holds):
    if not holds:
        raise SystemExit(f"FAILED: {what}")
    print("ok:", what)


def start(program, folder, *options):
    command = [program, "serve", "--port", "0", "--out", folder, "--json", "--quiet", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return process, json.loads(process.stdout.readline())["url"]


def fill(browser, **values):
    """Sets fields of the form as a person who moves sliders does."""
    for name, value in values.items():
        browser.run(f"const field = document.getElementById('{name}'); field.value = {json.dumps(value)};"
                    "field.dispatchEvent(new Event('input', {bubbles: true}));")


def cards(browser):
    return browser.run("return [...document.querySelectorAll('#gallery > li')].map(card => card.textContent)")


def press(browser, card, button):
    """Presses a button of a card; True if it is there."""
    return browser.run(f"const card = document.querySelectorAll('#gallery > li')[{card}];"
                       "const button = [...card.querySelectorAll('button')]"
                       f".find(button => button.textContent === '{button}');"
                       "if (button) button.click(); return !!button;")


def use(browser, url):
    browser.open(url)
    wait("the model's name", lambda: browser.run("return document.getElementById('model').value") == "demo")
    check("the form has the model's defaults", browser.run(
        "return ['frames', 'steps', 'width'].every(id => Number(document.getElementById(id).value) > 1)"))
    check("every field has a label", browser.run(
        "return [...document.querySelectorAll('#form input, #form textarea, #form select')]"
        ".every(field => field.labels.length === 1)"))

    # Keyboard alone: the prompt is the first field, Ctrl+Enter creates the video.
    browser.run("document.body.focus()")
    browser.keys(TAB)
    check("the first Tab goes to the prompt", browser.run("return document.activeElement.id") == "prompt")
    browser.keys(PROMPT)
    fill(browser, steps=30, seed="7")
    browser.run("document.getElementById('prompt').focus()")
    browser.keys(CONTROL + ENTER)
    wait("a card", lambda: len(cards(browser)) == 1)
    wait("a preview", lambda: browser.run(
        "const canvas = document.querySelector('#gallery canvas'); return canvas && canvas.width > 4"))
    check("progress is shown", browser.run("return document.querySelector('#gallery progress').value > 0"))
    wait("a video that plays", lambda: browser.run(
        "const video = document.querySelector('#gallery video'); return video && video.currentTime > 0"))
    check("the video was watched, so it plays by itself", "seed 7" in cards(browser)[0])

    # From the prompt to the button by Tab, and Enter.
    for _ in range(12):
        if browser.run("return document.activeElement.id") == "submit":
            break
        browser.keys(TAB)
    check("Tab reaches the button", browser.run("return document.activeElement.id") == "submit")

    check("a completed video can run again", press(browser, 0, "Run again"))
    wait("a second card", lambda: len(cards(browser)) == 2)
    wait("the second video", lambda: "Download" in cards(browser)[0])
    check("it has another seed", "seed 7" not in cards(browser)[0])
    check("a video can be edited", press(browser, 1, "Edit"))
    check("its seed is in the form", browser.run("return document.getElementById('seed').value") == "7")
    check("a video can be downloaded", press(browser, 1, "Download"))

    fill(browser, prompt="an endless fall", steps=50, frames=32)
    browser.run("document.getElementById('form').requestSubmit()")
    wait("a third card", lambda: len(cards(browser)) == 3)
    wait("its button", lambda: press(browser, 0, "Cancel"))
    wait("its end", lambda: "cancelled" in cards(browser)[0])
    check("a cancelled video can be deleted", press(browser, 0, "Delete"))
    wait("two cards", lambda: len(cards(browser)) == 2)

    fill(browser, width="50")
    browser.run("document.getElementById('form').noValidate = true;"
                "document.getElementById('form').requestSubmit();"
                "document.getElementById('form').noValidate = false;")
    wait("the server's error", lambda: "multiples of" in browser.run(
        "return document.getElementById('error').textContent"))
    fill(browser, width="48")
    browser.open(url)
    wait("the gallery after a reload", lambda: len(cards(browser)) == 2)


def looks(browser, url, picture):
    browser.open(url)
    for prompt, seed in [("a red circle moves to the right on a black background", "1"),
                         ("a blue triangle grows on a white background", "3")]:
        wait("the form", lambda: browser.run("return document.getElementById('model').value") == "demo")
        fill(browser, prompt=prompt, seed=seed)
        browser.run("document.getElementById('form').requestSubmit()")
        wait("a video", lambda: browser.run(
            f"return [...document.querySelectorAll('#gallery > li')].some(card => card.textContent.includes('seed {seed} ')"
            " && card.textContent.includes('Download'))"))
    colours = {}
    for scheme in ["dark", "light"]:
        browser.emulate(scheme)
        colours[scheme] = browser.run("return getComputedStyle(document.body).backgroundColor")
    check("dark differs from light", colours["dark"] != colours["light"])
    for width in [320, 390, 768, 1280]:
        browser.resize(width, 900)
        fits = "return document.documentElement.scrollWidth <= window.innerWidth"
        check(f"nothing is wider than {width} pixels", browser.run(fits))
    browser.run("scrollTo(0, 0); document.activeElement.blur()")
    fill(browser, prompt="a green square moves to the left on a gray background", steps=40, frames=32)
    browser.run("document.getElementById('form').requestSubmit()")
    wait("a preview for the picture", lambda: browser.run(
        "const bar = document.querySelector('#gallery progress'); return bar && bar.value > 60 && "
        "document.querySelector('#gallery canvas')"))
    bytes_ = browser.picture()
    check(f"the picture is small ({len(bytes_)} bytes)", len(bytes_) < 200_000)
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(bytes_)


def post(url, path, body):
    request = urllib.request.Request(url + path, data=json.dumps(body).encode(), method="POST",
                                     headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def with_many(browser, program):
    """More videos than one page of the list has (24)."""
    with tempfile.TemporaryDirectory() as folder:
        process, url = start(program, folder)

        def create(count, **parameters):
            return [post(url, "/v1/videos", {"prompt": PROMPT, **parameters})["id"] for _ in range(count)]

        try:
            short = {"steps": 1, "num_frames": 1}
            create(1, **short)
            browser.open(url)
            wait("the first video", lambda: "Download" in cards(browser)[0])
            browser.run("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
            create(40, **short)
            browser.run("delete document.hidden")
            wait("the videos that were made while the tab was hidden", lambda: len(cards(browser)) == 41)
            wait("their end", lambda: all("Download" in card for card in cards(browser)))

            # The running job is not on the first page.
            running, *_ = create(1, steps=250, num_frames=32)
            create(29, **short)
            browser.open(url)
            wait("a page of the list", lambda: len(cards(browser)) == 24)
            browser.run("document.getElementById('more').click()")
            wait("another page", lambda: len(cards(browser)) == 48)
            card = f"document.querySelector('[data-id={running}]')"
            wait("its progress", lambda: browser.run(f"return {card}.querySelector('progress').value > 0"))
            # The page learns this by the events of the job.
            post(url, f"/v1/videos/{running}/cancel", {})
            wait("its end", lambda: "cancelled" in browser.run(f"return {card}.textContent"))
        finally:
            process.terminate()
            process.wait()
    print("ok: videos of later pages appear and are followed")


def with_token(browser, program):
    with tempfile.TemporaryDirectory() as folder:
        process, url = start(program, folder, "--token", "correct-horse-battery")
        try:
            browser.open(url)
            wait("the question for the token", lambda: browser.run("return document.getElementById('login').open"))
            browser.keys("correct-horse-battery" + ENTER)
            wait("the model's name", lambda: browser.run("return document.getElementById('model').value") == "demo")
        finally:
            process.terminate()
            process.wait()
    print("ok: the page asks for the token")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--picture", type=Path, default=Path("docs/images/serve.png"))
    parser.add_argument("--port", type=int, default=9515, help="port of chromedriver")
    args = parser.parse_args()
    browser = Browser(args.port)
    try:
        with tempfile.TemporaryDirectory() as folder:
            process, url = start(args.program, folder)
            try:
                use(browser, url)
                looks(browser, url, args.picture)
                # 400 is the error that the test asked for; without a token 401 comes first.
                messages = [entry["message"] for entry in browser.console()
                            if not ("status of 400" in entry["message"] or "status of 401" in entry["message"])]
                check(f"the console is empty: {messages}", not messages)
            finally:
                process.terminate()
                process.wait()
        with_many(browser, args.program)
        with_token(browser, args.program)
    finally:
        browser.close()


if __name__ == "__main__":
    main()
