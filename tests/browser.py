"""A headless Chromium, spoken to over its debugging pipe: just enough to read a page as a reader's machine does."""

import json
import os
import select
import shutil
import subprocess
import time

PROGRAMS = ("google-chrome", "chromium", "chromium-browser")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-extensions --disable-dev-shm-usage --hide-scrollbars "
    "--remote-debugging-pipe"
).split()


def program():
    """Path of an installed browser, or None."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Browser:
    """One browser with one tab; nothing but the page's own requests is recorded.

    Args:
        program: the browser's path.
        profile: an empty folder for its settings.
    """

    def __init__(self, program, profile):
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()

        def pipes():  # the browser expects to hear on descriptor 3 and to speak on 4
            hear, speak = os.dup(to_browser), os.dup(from_browser)
            os.dup2(hear, 3)
            os.dup2(speak, 4)

        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        log = open(os.path.join(profile, "browser.log"), "wb")
        self._process = subprocess.Popen(command, close_fds=False, preexec_fn=pipes, stdout=log, stderr=log)
        log.close()
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._count, self._session = b"", 0, None
        self.events = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")

    def close(self):
        self._process.terminate()
        self._process.wait(timeout=20)
        os.close(self._write)
        os.close(self._read)

    def _message(self, deadline):
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise RuntimeError("the browser does not answer")
            chunk = os.read(self._read, 1 << 20)
            if not chunk:
                raise RuntimeError("the browser has gone; its folder holds browser.log")
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(line)

    def call(self, method, **params):
        """Send one command and return its result; events that arrive meanwhile are kept."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while True:
            answer = self._message(deadline)
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            if "method" in answer:
                self.events.append(answer)

    def screen(self, width, height, dark=False):
        """Give the tab the size of a screen, and its reader a taste for light or dark."""
        mobile = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        taste = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=taste)

    def open(self, url):
        """Go to a page and wait until it is loaded and its formulas are drawn."""
        self.events = []
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + 60
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            answer = self._message(deadline)
            if "method" in answer:
                self.events.append(answer)
        self.ask("window.MathJax?.startup?.promise?.then(() => true) ?? true")

    def ask(self, expression):
        """Value of a JavaScript expression; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']['text']}")
        return answer["result"].get("value")

    def requests(self):
        """Addresses that the page has asked for since it was opened."""
        sent = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent]

    def errors(self):
        """Exceptions that the page's scripts have thrown since it was opened."""
        thrown = [event["params"]["exceptionDetails"] for event in self.events if event["method"] == "Runtime.exceptionThrown"]
        return [details.get("exception", {}).get("description") or details["text"] for details in thrown]

    def picture(self):
        """The page as a PNG, in base64."""
        return self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
