"""Fuzz the control socket: clients send lines in pieces, and a second parser of the commands predicts the answers.

Each line that is not empty gets one line of JSON as its answer, in order, even if the last line has no line break.
'ok' is true for the commands that `help` lists, and false for anything else. A request that is too long is refused,
and the connection is closed.
"""

from __future__ import annotations

import json
from typing import Any

from reactor import observe

from .scene import Input, Scene, Socket

LONGEST_INPUT = 1200
# The numbers at the end of an input are three piece lengths, how the connection ends, how much the client reads, and
# whether there are two clients.
NUMBERS = 6
WORDS = (
    b'{"do": "stats"}\n', b'{"do": "handles", "limit": 10}\n', b'{"do": "handles", "kind": "Stream"}', b'help\n',
    b'"lame_duck": ', b'"drain_timeout": ', b'{"do": "drain"', b'why_alive\n', b'phases\n', b'1e999', b'NaN', b'true',
    b'\\ud800', b'null', b'\r\n', b'[[', b'-1', b'1000', b'86400',
)  # fmt: skip
LONGEST_LINE = 4096  # bytes
SILENT = 600.0  # seconds after which a silent client is disconnected
LONGEST_TEXT = 6000  # bytes: a payload of 100 bytes or more is repeated to about this length, to exceed the limit
SLOWEST = 30.0 + 5  # seconds: a client that reads nothing is disconnected after 30 seconds
WHOLE, SECONDS, TEXT = 'whole', 'seconds', 'text'
# The arguments of each command, from the table of commands in the documentation.
COMMANDS = {
    'help': {}, 'stats': {}, 'phases': {}, 'handles': {'kind': TEXT, 'limit': WHOLE}, 'why_alive': {'limit': WHOLE},
    'drain': {'drain_timeout': SECONDS, 'lame_duck': SECONDS},
}  # fmt: skip


def run(data: bytes) -> None:
    given = Input(data, NUMBERS)
    drains: list[tuple[float, float]] = []
    with Scene() as scene:
        control = observe.serve_control(scene.r, '/run/fuzzed.sock', drain=lambda *args: drains.append(args))
        pieces = list(given.pieces(3))
        how, reads, more = given.number(), given.number(), given.number()
        pieces *= 1 + LONGEST_TEXT // max(100, len(given.payload)) if more & 14 == 2 else 1
        socks = [connect(scene, control._sock) for _ in range(1 + more % 2)]
        limited = reads > 127
        for sock in socks:
            sock.room = 20 * reads if limited else None
        for piece, misled in pieces:
            for sock in socks:
                sock.arrive(piece, misled)
            scene.turn()
        if how % 4 == 0:
            for sock in socks:
                sock.end()
        scene.settle()
        whole = b''.join(piece for piece, _ in pieces)
        expected, ends = answers(whole, how % 4 == 0)
        if how % 4 == 1:
            scene.wait(SLOWEST)
            for sock in socks:
                sock.room = None  # the client reads again, but too late
            scene.settle()
        elif how % 4 == 2:
            for sock in socks:
                sock.reset()
        for sock in socks:
            check(sock, expected, ends or how % 4 == 0, limited, whole)
        check_drains(drains, expected, None if limited else len(socks))
        scene.wait(SILENT + SLOWEST)
        assert all(sock.closed for sock in socks), 'a silent client is still connected after 600 s'
        control.close()
        scene.settle()


def connect(scene: Scene, listening: Any) -> Socket:
    """Connect a client to the control socket, which is not a `Listener`."""
    sock = Socket(scene.kernel)
    listening.backlog.append(sock)
    scene.turn()
    return sock


# -- expected answers


def answers(data: bytes, ended: bool) -> tuple[list[Any], bool]:
    """Return the expected answers, and whether the server then closes the connection.

    An answer is True for 'ok', False for an error, or the two times of a drain.
    """
    *lines, rest = data.split(b'\n')
    expected: list[Any] = []
    for line in lines:
        if len(line.removesuffix(b'\r')) > LONGEST_LINE:
            return [*expected, False], True
        if line.strip():
            expected.append(deserved(line))
    if len(rest) > LONGEST_LINE + 1:
        return [*expected, False], True
    if ended and rest.strip():
        expected.append(deserved(rest))
    return expected, False


def deserved(line: bytes) -> Any:
    text = line.decode('utf-8', 'replace').strip()
    request: Any = {'do': text}
    if text.startswith('{'):
        try:
            request = json.loads(text, parse_constant=int)  # `int` raises for NaN and infinities, which are not JSON
        except (ValueError, RecursionError):
            return False
    name = request.pop('do', None)
    if not isinstance(name, str) or name not in COMMANDS:
        return False
    known: dict[str, str] = COMMANDS[name]  # type: ignore[assignment]
    if not all(key in known and fits(known[key], value) for key, value in request.items()):
        return False
    if name != 'drain':
        return True
    drain_timeout, lame_duck = request.get('drain_timeout', 30), request.get('lame_duck', 0)
    return (drain_timeout, lame_duck) if lame_duck <= drain_timeout else False


def fits(kind: str, value: Any) -> bool:
    """Return whether an argument is valid according to the documentation."""
    if kind == TEXT:
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, int if kind == WHOLE else int | float):
        return False
    return 1 <= value <= 1000 if kind == WHOLE else 0 <= value <= 86400


# -- checks


def check(sock: Socket, expected: list[Any], ends: bool, cut: bool, payload: bytes) -> None:
    *lines, rest = bytes(sock.sent).split(b'\n')
    assert cut or not rest, f'an answer without a line break: {rest!r}'
    assert len(lines) <= len(expected), f'{len(lines)} answers to {len(expected)} requests: {payload!r}'
    for line, deserves in zip(lines, expected, strict=False):
        answer = json.loads(line)
        assert answer['ok'] is (deserves is not False), f'{answer} to {payload!r}'
        assert answer['ok'] or (isinstance(answer['error'], str) and answer['error']), answer
        # An error that refers to the log would mean that the command itself raised an exception.
        assert answer['ok'] or 'see the log for the traceback' not in answer['error'], answer
    if not cut:
        assert len(lines) == len(expected), f'{len(lines)} answers to {len(expected)} requests: {payload!r}'
        assert sock.shut or sock.closed or not ends, 'the last answer was sent, but the connection is still open'


def check_drains(drains: list[tuple[float, float]], expected: list[Any], clients: int | None) -> None:
    """Check that each valid request began a drain with its own times.

    clients  how many clients sent the requests; None if the clients may not have read all answers
    """
    asked = [deserves for deserves in expected if isinstance(deserves, tuple)]
    assert all(drain in asked for drain in drains), f'{drains} for {asked}'
    if clients is not None:
        assert sorted(drains) == sorted(asked * clients), f'{drains} for {asked} from {clients} clients'
