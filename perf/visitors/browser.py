"""A headless Chromium, driven through chromedriver by the W3C WebDriver protocol; no library is needed.

At the end, both processes are killed and the browser's folder is removed, whatever has happened.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from typing import Any

DRIVER = shutil.which('chromedriver')
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
MISSING = None if DRIVER and CHROMIUM else 'no chromium and chromedriver: apt-get install chromium chromium-driver'
ATTEMPTS = 5  # attempts to start chromedriver: it chooses a port that is free for IPv6, but may be in use for IPv4
OPTIONS = [
    '--headless',
    '--no-sandbox',  # Chromium cannot use its sandbox when it runs as root
    '--disable-gpu',
    '--disable-dev-shm-usage',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--no-first-run',
    '--hide-scrollbars',
]


class Browser:
    """A context manager: a browser with one window.

    flags    additional command-line options for Chromium
    timeout  seconds that one command may take
    """

    def __init__(self, *flags: str, timeout: float = 60) -> None:
        assert DRIVER and CHROMIUM, MISSING
        self.flags = flags
        self.timeout = timeout
        self.session = ''
        self.folder = tempfile.TemporaryDirectory(prefix='browser-', ignore_cleanup_errors=True)
        try:
            self.port = self._start()
            self._begin()
        except BaseException:
            self.close()
            raise

    def _start(self) -> int:
        output = []
        for _ in range(ATTEMPTS):
            # Start a process group, because killing chromedriver does not end the browser.
            self.process = subprocess.Popen(
                [DRIVER, '--port=0'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
            )
            for line in self.process.stdout:
                output.append(line)
                if found := re.search(r'started successfully on port (\d+)', line):
                    return int(found[1])
            self._kill()
        raise RuntimeError(f'chromedriver did not start: {"".join(output)}')

    def _begin(self) -> None:
        options = {'binary': CHROMIUM, 'args': [*OPTIONS, *self.flags, f'--user-data-dir={self.folder.name}']}
        wanted = {'goog:chromeOptions': options, 'goog:loggingPrefs': {'browser': 'ALL'}}
        answer = self.send('POST', '/session', {'capabilities': {'alwaysMatch': wanted}})
        self.session = f'/session/{answer["sessionId"]}'

    def send(self, method: str, path: str, body: Any = None) -> Any:
        """Send a command and return its value; raise RuntimeError with the driver's error message."""
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=self.timeout)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            value = json.load(connection.getresponse())['value']
        finally:
            connection.close()
        if isinstance(value, dict) and 'error' in value:
            raise RuntimeError(f'{value["error"]}: {value["message"]}')
        return value

    def open(self, url: str) -> None:
        """Load a page."""
        self.send('POST', f'{self.session}/url', {'url': url})

    def run(self, script: str, *args: Any) -> Any:
        """Run JavaScript as the body of a function, and return the function's result."""
        return self.send('POST', f'{self.session}/execute/sync', {'script': script, 'args': args})

    def until(self, expression: str, timeout: float = 20) -> Any:
        """Evaluate a JavaScript expression until it is true; return its value."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if value := self.run(f'return {expression}'):
                return value
            time.sleep(0.05)
        raise AssertionError(f'not true within {timeout} s: {expression}\n{self.run("return document.body.innerText")}')

    def devtools(self, command: str, **params: Any) -> Any:
        """Send a command of the DevTools protocol."""
        return self.send('POST', f'{self.session}/goog/cdp/execute', {'cmd': command, 'params': params})

    def press(self, *keys: str) -> None:
        """Press and release keys one after the other; the focused element receives them."""
        actions = [{'type': kind, 'value': key} for key in keys for kind in ('keyDown', 'keyUp')]
        self.send('POST', f'{self.session}/actions', {'actions': [{'type': 'key', 'id': 'keys', 'actions': actions}]})

    def double_click(self, x: int, y: int) -> None:
        """Double-click at a place in the window, and move the pointer away."""
        move = {'type': 'pointerMove', 'duration': 0, 'origin': 'viewport'}
        click = [{'type': 'pointerDown', 'button': 0}, {'type': 'pointerUp', 'button': 0}]
        actions = [{**move, 'x': x, 'y': y}, *click, *click, {**move, 'x': 0, 'y': 0}]
        self.send(
            'POST', f'{self.session}/actions', {'actions': [{'type': 'pointer', 'id': 'mouse', 'actions': actions}]}
        )

    def show(self, width: int, height: int, scheme: str = 'light', motion: str = 'no-preference') -> None:
        """Set the size of the window in CSS pixels, and the user's preferences for colours and motion."""
        self.devtools(
            'Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        features = [('prefers-color-scheme', scheme), ('prefers-reduced-motion', motion)]
        self.devtools('Emulation.setEmulatedMedia', features=[{'name': n, 'value': v} for n, v in features])

    def picture(self) -> bytes:
        """Return the content of the window as PNG."""
        return base64.b64decode(self.send('GET', f'{self.session}/screenshot'))

    def log(self) -> list[dict[str, Any]]:
        """Return the entries in the console since the last call."""
        return self.send('POST', f'{self.session}/se/log', {'type': 'browser'})  # type: ignore[no-any-return]

    def live_heap(self) -> tuple[int, int]:
        """Return the number of DOM nodes and the bytes of script objects, after garbage collection."""
        self.devtools('Performance.enable')
        found = []
        for _ in range(5):  # the page's script may run in between, and some garbage needs a second collection
            self.devtools('HeapProfiler.collectGarbage')
            metrics = {each['name']: each['value'] for each in self.devtools('Performance.getMetrics')['metrics']}
            found.append((metrics['Nodes'], metrics['JSHeapUsedSize']))
        return min(found)

    def close(self) -> None:
        """End the session, kill both processes and remove the folder."""
        try:
            if self.session and self.process.poll() is None:
                self.send('DELETE', self.session)
        except (OSError, RuntimeError, ValueError):
            pass
        finally:
            self._kill()
            self.folder.cleanup()

    def _kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.communicate()

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
