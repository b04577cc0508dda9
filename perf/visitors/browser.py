"""A headless Chromium, driven through chromedriver by the W3C WebDriver protocol; needs no library.

Owns both processes and one session. The rule: nothing is left behind, whatever happens in between.
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
MISSING = None if DRIVER and CHROMIUM else 'no chromedriver and chromium (apt-get install chromium chromium-driver)'
ATTEMPTS = 5  # it finds a port that is free for IPv6, and then may not have it for IPv4
OPTIONS = [
    '--headless',
    '--no-sandbox',  # which root cannot have
    '--disable-gpu',
    '--disable-dev-shm-usage',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--no-first-run',
    '--hide-scrollbars',
]


class Browser:
    """One window. A context manager; `timeout` in seconds is what one command may take, `flags` are Chromium's."""

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
        said = []
        for _ in range(ATTEMPTS):
            # A group of its own: chromedriver that is killed leaves the browser to its own devices.
            self.process = subprocess.Popen(
                [DRIVER, '--port=0'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
            )
            for line in self.process.stdout:
                said.append(line)
                if found := re.search(r'started successfully on port (\d+)', line):
                    return int(found[1])
            self._kill()
        raise RuntimeError(''.join(said))

    def _begin(self) -> None:
        options = {'binary': CHROMIUM, 'args': [*OPTIONS, *self.flags, f'--user-data-dir={self.folder.name}']}
        wanted = {'goog:chromeOptions': options, 'goog:loggingPrefs': {'browser': 'ALL'}}
        answer = self.send('POST', '/session', {'capabilities': {'alwaysMatch': wanted}})
        self.session = f'/session/{answer["sessionId"]}'

    def send(self, method: str, path: str, body: Any = None) -> Any:
        """One command; returns its value, raises RuntimeError with what the driver says."""
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
        """Run JavaScript as the body of a function, and return what it returns."""
        return self.send('POST', f'{self.session}/execute/sync', {'script': script, 'args': args})

    def until(self, expression: str, timeout: float = 20) -> Any:
        """Evaluate until it is true, and return that."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if value := self.run(f'return {expression}'):
                return value
            time.sleep(0.05)  # a browser runs by itself: there is nothing here to wait for
        raise AssertionError(f'not in {timeout} s: {expression}\n{self.run("return document.body.innerText")}')

    def devtools(self, command: str, **params: Any) -> Any:
        """A command of the DevTools protocol."""
        return self.send('POST', f'{self.session}/goog/cdp/execute', {'cmd': command, 'params': params})

    def press(self, *keys: str) -> None:
        """Press and let go of keys, one after the other, wherever the focus is."""
        actions = [{'type': kind, 'value': key} for key in keys for kind in ('keyDown', 'keyUp')]
        self.send('POST', f'{self.session}/actions', {'actions': [{'type': 'key', 'id': 'keys', 'actions': actions}]})

    def show(self, width: int, height: int, scheme: str = 'light', motion: str = 'no-preference') -> None:
        """The size of the window in CSS pixels, and what its user prefers."""
        self.devtools(
            'Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        features = [('prefers-color-scheme', scheme), ('prefers-reduced-motion', motion)]
        self.devtools('Emulation.setEmulatedMedia', features=[{'name': n, 'value': v} for n, v in features])

    def picture(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self.send('GET', f'{self.session}/screenshot'))

    def log(self) -> list[dict[str, Any]]:
        """What the console got since the last call."""
        return self.send('POST', f'{self.session}/se/log', {'type': 'browser'})  # type: ignore[no-any-return]

    def live_heap(self) -> tuple[int, int]:
        """How many DOM nodes there are, and the bytes of script objects, after a collection of what is not used."""
        self.devtools('Performance.enable')
        found = []
        for _ in range(5):  # the script may run between the two; and one collection frees what only the next can reach
            self.devtools('HeapProfiler.collectGarbage')
            metrics = {each['name']: each['value'] for each in self.devtools('Performance.getMetrics')['metrics']}
            found.append((metrics['Nodes'], metrics['JSHeapUsedSize']))
        return min(found)

    def close(self) -> None:
        """End it and all that belongs to it."""
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
