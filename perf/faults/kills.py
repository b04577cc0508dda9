"""Workers are killed and stopped under load (M12).

Two workers of `reactor.serve` run, each on a listening socket that the parent keeps open, so the clients in the backlog
of a worker are not reset when it ends. Every request is counted as answered, lost or refused. A request may only be
lost if its worker was killed at that moment.
"""

import errno
import os
import selectors
import signal
import socket
import time

from perf.common.machine import ahead_of_others, raise_descriptor_limit

from .case import Case, Goal
from .child import Child
from .held import wait, wait_until
from .programs import source

KILLS = 100
EVERY = 2.0  # seconds from one kill to the next
STOPPED = 10.0  # seconds for which a worker is stopped
RATE = 600  # requests a second, each on its own connection; a stopped worker's share must fit into its backlog
AT_ONCE = 0.5  # seconds after a kill within which a lost connection is attributed to the kill
PATIENCE = 30  # seconds after which a request counts as hung


class Kills(Case):
    name = 'M12'
    title = 'two workers under 600 requests/s: one is killed every 2 s, 100 times; then one is stopped for 10 s'
    seconds = 225
    goals = (
        Goal('every request ends', lambda m: m['answered'] + m['lost'] + m['refused'] == m['sent']),
        Goal('only requests that a killed worker had accepted are lost', lambda m: m['lost_otherwise'] == 0),
        Goal('no connection is refused', lambda m: m['refused'] == 0),
        Goal('a new worker serves within 1 s', lambda m: m['longest_respawn_s'] <= 1, timed=True),
        Goal('no request is lost while a worker is stopped', lambda m: m['lost_while_stopped'] == 0),
    )

    def measure(self, run):
        kills, every, stopped = run.count(KILLS, 2), run.seconds(EVERY, 0.7), run.seconds(STOPPED, 0.5)
        # Run the workers at real-time priority too: otherwise other work on the machine would be measured.
        with Child('serving:serve_answers', prefix=ahead_of_others(), workers=2) as server:
            with Child('kills:load', prefix=ahead_of_others(2), port=server.receive()) as load:
                wait_until('both workers serve', lambda: len(server.ask('pids')) == 2)
                load.send('go', seconds=(kills + 0.5) * every)
                killed, respawns = self.kill(run, server, kills, every)
                found = load.receive(2 * PATIENCE + kills * every)
                load.send('go', seconds=1.2 * stopped)
                pid = server.ask('pids')['0']
                os.kill(pid, signal.SIGSTOP)
                wait(stopped, run, 'a worker is stopped')
                os.kill(pid, signal.SIGCONT)
                then = load.receive(PATIENCE + stopped)
        return self.account(found, then, killed, respawns)

    def kill(self, run, server, kills, every):
        """Kill the workers in turn; return (time, pid) of each kill, and the seconds until the new worker served."""
        killed, respawns, began = [], [], time.monotonic()
        for index in range(kills):
            time.sleep(max(0, began + (index + 1) * every - time.monotonic()))
            slot = str(index % 2)
            pid = server.ask('pids')[slot]
            now = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            killed.append((now, pid))
            replaced = lambda slot=slot, pid=pid: server.ask('pids').get(slot, pid) != pid  # noqa: E731
            respawns.append(wait_until('the new worker serves', replaced))
            run.progress(index, kills, f'{index + 1} killed')
        return killed, respawns

    def account(self, found, then, killed, respawns):
        """Return the figures; `found` has the counts of the load during the kills, `then` those during the stop."""

        def in_flight(when, pid):
            return any(0 <= when - at < AT_ONCE and pid in (None, of) for at, of in killed)

        return {
            'sent': found['sent'],
            'answered': found['answered'],
            'lost': len(found['lost']),
            'lost_otherwise': sum(not in_flight(when, pid) for when, pid in found['lost']),
            'refused': found['refused'] + then['refused'],
            'kills': len(killed),
            'longest_respawn_s': max(respawns),
            'longest_answer_s': found['longest'],
            'sent_while_stopped': then['sent'],
            'lost_while_stopped': then['sent'] - then['answered'],
            'longest_answer_then_s': then['longest'],
        }


class Load:
    """Sends requests at a fixed rate, whatever happens to them."""

    def __init__(self, port):
        self.port = port

    def go(self, seconds):
        self.sent = self.answered = self.refused = 0
        self.lost, self.longest = [], 0.0
        self.received, self.began = {}, {}
        began, total = time.monotonic(), round(RATE * seconds)
        with selectors.DefaultSelector() as self.selector:
            while (self.sent < total or self.began) and time.monotonic() - began < seconds + PATIENCE:
                now = time.monotonic()
                while self.sent < total and began + self.sent / RATE <= now:
                    self.ask(began + self.sent / RATE)
                next_one = began + self.sent / RATE if self.sent < total else now + 1
                for key, events in self.selector.select(max(0, next_one - time.monotonic())):
                    self.ready(key.fileobj, events)
            for sock in self.began:
                sock.close()  # the request hangs
        counts = {'sent': self.sent, 'answered': self.answered, 'refused': self.refused}
        return {**counts, 'lost': self.lost, 'longest': self.longest}

    def ask(self, due):
        sock = socket.socket()
        sock.setblocking(False)
        sock.bind((source(self.sent), 0))
        self.sent += 1
        if sock.connect_ex(('127.0.0.1', self.port)) not in (0, errno.EINPROGRESS):
            self.refused += 1
            sock.close()
            return
        self.began[sock], self.received[sock] = due, b''
        self.selector.register(sock, selectors.EVENT_WRITE)

    def ready(self, sock, events):
        try:
            if events & selectors.EVENT_WRITE:
                sock.send(b'?')
                self.selector.modify(sock, selectors.EVENT_READ)
                return
            data = sock.recv(16)
        except ConnectionRefusedError:
            self.refused += 1
            self.forget(sock)
            return
        except OSError:
            data = b''
        self.received[sock] += data
        if not data or b'.' in data:
            self.end(sock)

    def end(self, sock):
        now, received, took = time.monotonic(), self.received[sock], time.monotonic() - self.began[sock]
        if b'.' in received:
            self.answered += 1
            self.longest = max(self.longest, took)
        else:
            self.lost.append((now, int(received) if received else None))
        self.forget(sock)

    def forget(self, sock):
        del self.received[sock], self.began[sock]
        self.selector.unregister(sock)
        sock.close()


def load(control, port):
    raise_descriptor_limit()
    control.serve({'go': Load(port).go})
