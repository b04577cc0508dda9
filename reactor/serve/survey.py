"""Questions to all workers at once, which neither a worker that hangs nor one that ends can hold up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .. import Reactor
from .health import WorkerState

PATIENCE = 1.0  # seconds for which the answers are waited for


class WorkerAnswer(NamedTuple):
    """What one worker has answered.

    Attributes:
        worker: The worker, and its state when it was asked.
        text: The answer. None if the worker has not answered in time; one that is still starting is not asked.
    """

    worker: WorkerState
    text: str | None


class Survey:
    """A question to some workers. `on_answers` is called when all have answered, or after PATIENCE.

    Args:
        r: The parent's reactor.
        workers: The worker processes, by name.
        request: The question, as `worker.described` takes it.
        on_answers: Called as `on_answers(answers)`, in a later turn, with a `WorkerAnswer` for each worker.
    """

    def __init__(
        self,
        r: Reactor,
        workers: Mapping[str, Any],
        request: str,
        on_answers: Callable[[list[WorkerAnswer]], object],
    ) -> None:
        # Names and states are those of this moment, because they can change until the answers arrive.
        self._asked = [(worker, worker.state(name)) for name, worker in workers.items()]
        self._on_answers: Callable[[list[WorkerAnswer]], object] | None = on_answers
        self._texts: dict[Any, str] = {}
        self._waiting = {worker for worker in workers.values() if worker.ready and worker.ask(request, self.on_answer)}
        self._timer = r.call_later(PATIENCE if self._waiting else 0, self._end)
        self._timer.unref()

    def on_answer(self, worker: Any, text: str) -> None:
        """Called with the answer of a worker, perhaps too late."""
        if self._on_answers is None:
            return
        self._waiting.discard(worker)
        self._texts[worker] = text
        if not self._waiting:
            self._timer.reset(0)  # not now: an exception in `on_answers` would harm the worker that answered last

    def _end(self) -> None:
        on_answers, self._on_answers = self._on_answers, None
        answers = [WorkerAnswer(state, self._texts.pop(worker, None)) for worker, state in self._asked]
        self._asked = []  # a worker that hangs may keep this survey for a long time
        if on_answers is not None:
            on_answers(answers)
