"""Open a trace in speedscope, the viewer of www.speedscope.app, in the headless browser.

The viewer is the npm package speedscope, which contains the whole page. Nothing is loaded from the network.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path

from . import browser

FLAGS = ('--allow-file-access-from-files', '--enable-unsafe-swiftshader')  # it draws with WebGL, and here is no GPU


def page() -> Path | None:
    """Return the viewer's page: in the folder $SPEEDSCOPE, or where `npm install -g speedscope` puts it."""
    folders = [os.environ['SPEEDSCOPE']] if 'SPEEDSCOPE' in os.environ else []
    if not folders and (npm := shutil.which('npm')):
        found = subprocess.run([npm, 'root', '-g'], capture_output=True, text=True, timeout=60, check=False)
        folders.append(os.path.join(found.stdout.strip(), 'speedscope', 'dist', 'release'))
    pages = [Path(folder) / 'index.html' for folder in folders]
    return next((each for each in pages if each.is_file()), None)


def missing() -> str | None:
    """Return what has to be installed to open a trace, or None."""
    if browser.MISSING is not None:
        return browser.MISSING
    return None if page() else 'no speedscope: npm install -g speedscope, or set SPEEDSCOPE to its folder dist/release'


def show(window: browser.Browser, trace: Path, folder: Path) -> None:
    """Open a trace and wait until it is drawn. A script with its content is written to `folder`."""
    script = folder / 'trace.js'
    content = base64.b64encode(trace.read_bytes()).decode()
    script.write_text(f'speedscope.loadFileFromBase64({json.dumps(trace.name)}, {json.dumps(content)})')
    window.open('about:blank')  # otherwise the next command would change only the fragment of a page that is open
    window.open(f'{page().absolute().as_uri()}#localProfilePath={script.absolute()}')
    window.until("document.body.innerText.includes('(1/')", 60)
