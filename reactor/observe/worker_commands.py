"""The commands of a parent's control socket: those that describe a reactor are answered by every worker.

A worker that does not answer within a second is named in the answer, and does not delay the others any longer. With the
argument `worker`, one worker answers, or the parent itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import Reactor
from ..inspection import LIMIT
from .commands import COMMANDS, MOST, CommandError, Commands, CommandTable, phases_of, refusal, word
from .counters import Source, combined
from .recorder import FlightRecorder

if TYPE_CHECKING:
    from ..serve import Workers
    from ..serve.survey import WorkerAnswer

PARENT = 'parent'
LONGEST_ANSWER = 12 << 20  # bytes; a client's connection buffers at most 16 MiB
# Maps each command that the workers answer to the name of a description in `reactor.inspection`.
ASKED = {'stats': 'counters', 'phases': 'counters', 'handles': 'handles', 'why_alive': 'why_alive', 'top': 'activity'}
WHICH = word, f'the worker to ask, such as 0, or {PARENT} for the process that owns the socket (default: all workers)'
WORKER_COMMANDS: CommandTable = {
    name: (what, {**arguments, 'worker': WHICH}) if name in ASKED else (what, arguments)
    for name, (what, arguments) in {
        **COMMANDS,
        'handles': ('the open handles of each worker', COMMANDS['handles'][1]),
        'why_alive': ('why each worker is still running', COMMANDS['why_alive'][1]),
        'top': ('the busiest and the oldest connections of each worker', COMMANDS['top'][1]),
    }.items()
}


class WorkerCommands(Commands):
    """The commands, for the parent of workers."""

    def __init__(
        self,
        r: Reactor,
        source: Source,
        drain: Callable[[float, float], object],
        workers: Workers,
        recorder: FlightRecorder | None,
    ) -> None:
        super().__init__(r, source, drain, recorder)
        self.known = WORKER_COMMANDS
        self._workers = workers

    def handle(self, line: bytes, reply: Callable[[bytes], object]) -> None:
        """Call `reply(answer)` when the workers have answered."""
        if self.traces(line, reply):
            return
        try:
            name, arguments = self.parse(line)
        except CommandError as exc:
            reply(refusal(str(exc)))
            return
        worker = arguments.pop('worker', None)
        if name not in ASKED or worker == PARENT:
            reply(self.attempt(partial(getattr(self, f'do_{name}'), **arguments)))
            return
        if 'limit' in COMMANDS[name][1]:  # however many workers there are, the answer is bounded
            most = MOST if worker else max(1, MOST // max(1, len(self._workers.pids())))
            arguments['limit'] = min(arguments.get('limit', LIMIT), most)
        request = json.dumps([ASKED[name], arguments])
        self._workers.ask(request, partial(self._on_answers, name, worker, reply), worker)

    def do_drain(self, **times: float) -> dict[str, Any]:
        """Have the workers drain. Without times, and without another function, they use those of their program."""
        if times or self._drain != self._workers.drain:
            return super().do_drain(**times)
        self._workers.drain()
        return {'drain_timeout': None, 'lame_duck': None}

    def _on_answers(
        self, name: str, worker: str | None, reply: Callable[[bytes], object], answers: list[WorkerAnswer]
    ) -> None:
        answer = self.attempt(self._joined, name, worker, answers)
        reply(answer if len(answer) <= LONGEST_ANSWER else refusal('the answer is too long; use a smaller limit'))

    def _joined(self, name: str, worker: str | None, answers: list[WorkerAnswer]) -> dict[str, Any]:
        if worker is not None and not answers:
            raise CommandError(f'there is no worker {worker[:100]!r}; stats lists the workers')
        found = [(one, _content(one)) for one in answers]
        if worker is not None and 'error' in found[0][1]:
            raise CommandError(f'worker {worker} (pid {answers[0].worker.pid}): {found[0][1]["error"]}')
        if name == 'top':
            return {**phases_of(self.do_stats()), 'connections': [_described(one, content) for one, content in found]}
        if ASKED[name] != 'counters':
            return {'workers': [_described(one, content) for one, content in found]}
        stats = self.do_stats()
        # A worker that has not answered is shown with the counters of its last report.
        counters = {} if worker is not None else dict(stats['workers'])
        counters |= {one.worker.name: content['answer'] for one, content in found if 'answer' in content}
        stats |= {'workers': counters, 'sum': combined(counters.values())}
        silent = {one.worker.name: content['error'] for one, content in found if 'error' in content}
        return {**(stats if name == 'stats' else phases_of(stats)), 'silent': silent}


def _described(answer: WorkerAnswer, content: dict[str, Any]) -> dict[str, Any]:
    about = {'worker': answer.worker.name, 'pid': answer.worker.pid, 'state': answer.worker.state}
    return {**about, **content['answer']} if 'answer' in content else {**about, 'error': content['error']}


def _content(answer: WorkerAnswer) -> dict[str, Any]:
    """Return the content of an answer: an object with the key 'answer' or 'error'."""
    if answer.text is not None:
        content: dict[str, Any] = json.loads(answer.text)
        return content
    if answer.worker.state == 'starting':
        return {'error': 'the worker is still starting'}
    return {
        'error': 'no answer within 1 s: the loop of the worker is blocked, or the process is stopped; '
        f'py-spy dump --pid {answer.worker.pid} shows what it is doing'
    }
