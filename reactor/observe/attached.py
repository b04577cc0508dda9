"""What runs inside a process to which `python -m reactor.observe --pid PID` attaches."""

from __future__ import annotations

import gc
import json
import os

from .. import Reactor
from .control_socket import ControlSocket, serve_control

LOOK = 0.5  # seconds between two looks for the process that has asked


def open_socket(path: str, answer: str, number: int | None, asker: int) -> None:
    """Open a control socket in a running reactor of this process, and write the outcome to the file `answer`.

    This runs in the main thread, between two of its bytecodes.

    Args:
        path: Where to open the control socket.
        answer: The file for the outcome: JSON, with the key 'error' if there is one.
        number: Which reactor, in the order of their creation; None: the only one.
        asker: The process that has asked. The socket is closed when it, or the folder of the socket, is gone.
    """
    try:
        found = running_reactors()
        if not found:
            _answer(answer, {'error': 'no reactor runs in it'})
        elif number is None and len(found) > 1:
            listed = ', '.join(f'{n}: {r.stats().handles} handles' for n, r in enumerate(found))
            _answer(answer, {'error': f'{len(found)} reactors run in it; choose one with --reactor ({listed})'})
        elif not 0 <= (number or 0) < len(found):
            _answer(answer, {'error': f'it has the reactors 0 to {len(found) - 1}'})
        else:
            r = found[number or 0]
            r.call_soon_threadsafe(_open, r, path, answer, asker)
    except Exception as exc:  # raised into the middle of the program otherwise
        _answer(answer, {'error': f'{type(exc).__name__}: {exc}'})


def running_reactors() -> list[Reactor]:
    """Return the reactors of this process that run now, the oldest first."""
    return [each for each in gc.get_objects() if issubclass(type(each), Reactor) and each.guard.thread is not None]


def _open(r: Reactor, path: str, answer: str, asker: int) -> None:
    try:
        control = serve_control(r, path)
    except Exception as exc:
        _answer(answer, {'error': f'{type(exc).__name__}: {exc}'})
        return
    Visit(r, control, path, asker)
    _answer(answer, {'path': path})


class Visit:
    """A control socket that is closed when the process that has asked for it is gone."""

    def __init__(self, r: Reactor, control: ControlSocket, path: str, asker: int) -> None:
        self._control = control
        self._path = path
        self._asker = asker
        self._timer = r.call_every(LOOK, self._look)
        self._timer.unref()

    def _look(self) -> None:
        if self._control.closed or not os.path.exists(self._path) or not _exists(self._asker):
            self._timer.cancel()
            self._control.close()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # root has asked
    return True


def _answer(path: str, outcome: dict[str, str]) -> None:
    with open(path + '.new', 'w') as file:
        json.dump(outcome, file)
    os.replace(path + '.new', path)
