"""Workers that are killed, and stopped, under load.

Owns M12: two workers of `reactor.serve`, each on a listening socket that its parent keeps, so that a worker's end takes
none of its backlog away. The rule: every request is accounted for, as answered or as lost, and a lost one must have
been with a worker that was killed at that very moment.
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
EVERY = 2.0  # seconds between two of them
STOPPED = 10.0  # seconds that a worker is stopped
RATE = 600  # requests a second, each on a connection of its own; a stopped worker's share fits into its backlog
AT_ONCE = 0.5  # seconds after a kill in which its connections are lost
PATIENCE = 30  # seconds until a request counts as hung


class Kills(Case):
    name = 'M12'
    title = 'two workers under 600 requests/s: one killed every 2 s, 100 times; one stopped for 10 s'
    seconds = 225
    goals = (
        Goal('every request ends', lambda m: m['answered'] + m['lost'] + m['refused'] == m['sent']),
        Goal('lost is only what the killed worker had accepted', lambda m: m['lost_otherwise'] == 0),
        Goal('nobody is refused', lambda m: m['refused'] == 0),
        Goal('a new worker serves within 1 s', lambda m: m['longest_respawn_s'] <= 1, timed=True),
        Goal('nothing is lost by stopping', lambda m: m['lost_while_stopped'] == 0),
    )

    def measure(self, run):
        kills, every, stopped = run.count(KILLS, 2), run.seconds(EVERY, 0.7), run.seconds(STOPPED, 0.5)
        # Ahead of others, workers too, or it is the machine's other work that is measured.
        with Child('serving:serve_answers', prefix=ahead_of_others(), workers=2) as server:
            with Child('kills:load', prefix=ahead_of_others(2), port=server.hear()) as load:
                wait_until('both serve', lambda: len(server.ask('pids')) == 2)
                load.tell('go', seconds=(kills + 0.5) * every)
                killed, respawns = self.kill(run, server, kills, every)
                found = load.hear(2 * PATIENCE + kills * every)
                load.tell('go', seconds=1.2 * stopped)
                pid = server.ask('pids')['0']
                os.kill(pid, signal.SIGSTOP)
                wait(stopped, run, 'one is stopped')
                os.kill(pid, signal.SIGCONT)
                then = load.hear(PATIENCE + stopped)
        return self.account(found, then, killed, respawns)

    def kill(self, run, server, kills, every):
        """When which of them was killed, and how long it took until the next one served."""
        killed, respawns, began = [], [], time.monotonic()
        for index in range(kills):
            time.sleep(max(0, began + (index + 1) * every - time.monotonic()))
            slot = str(index % 2)
            pid = server.ask('pids')[slot]
            now = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            killed.append((now, pid))
            respawns.append(wait_until('the next serves', lambda: server.ask('pids').get(slot, pid) != pid))  # noqa: B023
            run.progress(index, kills, f'{index + 1} killed')
        return killed, respawns

    def account(self, found, then, killed, respawns):
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
    """Requests at a fixed rate, whatever becomes of them."""

    def __init__(self, port):
        self.port = port

    def go(self, seconds):
        self.sent = self.answered = self.refused = 0
        self.lost, self.longest = [], 0.0
        self.heard, self.began = {}, {}
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
                sock.close()  # hung
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
        self.began[sock], self.heard[sock] = due, b''
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
        self.heard[sock] += data
        if not data or b'.' in data:
            self.end(sock)

    def end(self, sock):
        now, heard, took = time.monotonic(), self.heard[sock], time.monotonic() - self.began[sock]
        if b'.' in heard:
            self.answered += 1
            self.longest = max(self.longest, took)
        else:
            self.lost.append((now, int(heard) if heard else None))
        self.forget(sock)

    def forget(self, sock):
        del self.heard[sock], self.began[sock]
        self.selector.unregister(sock)
        sock.close()


def load(control, port):
    raise_descriptor_limit()
    control.serve({'go': Load(port).go})
