"""An asyncio loop as one of the owners that `tests/helpers/owners.py` tests together.

asyncio reads the numbers of signals from the wakeup descriptor. When its loop closes, it restores the default handler
and removes the wakeup descriptor, even if both have been replaced by other code.
"""

from __future__ import annotations

import asyncio

from tests.helpers import owners


class Asyncio(owners.Silencing):
    """A loop with a signal handler, from its creation to its close."""

    handles = True
    by_byte = True

    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.add_signal_handler(self.cell.signum, self.note)

    def end(self) -> None:
        self.loop.close()

    def fileno(self) -> int:
        number: int = self.loop._csock.fileno()
        return number

    def turn(self) -> None:
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    def bytes_waiting(self) -> bytes:
        self.turn()
        self.turn()
        return bytes((self.cell.signum,)) if self.heard else b''


if __name__ == '__main__':
    owners.KINDS['Asyncio'] = Asyncio
    owners.main(lambda kinds: Asyncio in kinds)
