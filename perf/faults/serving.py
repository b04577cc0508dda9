"""Processes that `reactor.serve` starts: replaced, ended, orphaned and crashing, under load.

Owns M13, M21, M22 and M23. The rule: whoever was accepted, by the kernel in our name, is answered. A client that is
refused has lost nothing, and is counted apart.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time

from perf.common.machine import ahead_of_others, raise_descriptor_limit
from perf.common.server import PROJECT, Failed, environment, read_line
from perf.loads.keepalive import KeepAliveClients
from perf.loads.wrk import Wrk
from reactor import serve

from .case import Case, Goal
from .child import Child
from .held import wait, wait_until
from .programs import echo, go_on

RELOADS, DRAINS = 100, 20
CLIENTS = 50  # on connections that are kept
BEFORE, AFTER = 1.0, 0.5  # seconds of load before anything happens, and when nobody is accepted any more
LAME_DUCK = 1.0  # seconds in which who drains still accepts
START = 20  # seconds in which a server must listen
DRAIN_TIMEOUT = 10.0  # seconds for what is under way when it ends
WORK = 0.02  # seconds that an answer takes
WATCHED = 60.0  # seconds of a crash loop
CRASHING = 4  # workers


class Reloads(Case):
    name = 'M13'
    title = 'http_server.py: two workers replaced 100 times under wrk with 50 connections that are kept'
    seconds = 330
    needs = ('wrk',)
    goals = (
        Goal('no socket error: connect, read, write, timeout', lambda m: not m['errors']),
        Goal('every answer is 200', lambda m: not m['other_answers']),
        Goal('both workers are new after each', lambda m: m['replaced'] == 2 * m['reloads']),
        Goal('nothing in the log', lambda m: not m['log']),
    )

    def missing(self):
        return super().missing() or no_h11()

    def measure(self, run):
        reloads = run.count(RELOADS, 2)
        with HTTPServer(2, run.seconds(LAME_DUCK, 0.3)) as server:
            seen = set(server.workers(2))
            with KeepAliveClients(server.port, '/README.md', CLIENTS) as kept:
                wait_until('both serve', lambda: kept.go(0.1) or kept.answered > 2 * CLIENTS)
            wrk = Wrk(server.port, '/README.md', CLIENTS)
            time.sleep(run.seconds(BEFORE, 0.3))
            for index in range(reloads):
                old = server.workers(2)
                server.process.send_signal(signal.SIGHUP)
                wait_until('both are replaced', lambda old=old: not set(old) & set(server.workers()))
                seen |= set(server.workers(2))
                run.progress(index + 1, reloads, 'replaced')
            found = wrk.end()
            server.process.terminate()
            status, log = server.end()
        return {'reloads': reloads, 'replaced': len(seen) - 2, **found, 'status': status, 'log': log}


class Drains(Case):
    name = 'M21'
    title = 'SIGTERM under load, 20 times: 600 connections/s for one request each, then 50 that are kept'
    seconds = 130
    goals = (
        Goal('who was accepted is answered', lambda m: m['lost'] == 0),
        Goal('so is every request on a connection that is kept', lambda m: m['kept_lost'] == 0),
        Goal('its status is 0', lambda m: m['statuses'] == [0]),
    )

    def missing(self):
        return super().missing() or no_h11()

    def measure(self, run):
        drains, before, lame_duck = run.count(DRAINS, 1), run.seconds(BEFORE, 0.3), run.seconds(LAME_DUCK, 0.3)
        times = {'drain_timeout': DRAIN_TIMEOUT, 'lame_duck': lame_duck}
        sent = answered = lost = kept_answered = kept_lost = 0
        statuses = set()
        for index in range(drains):
            with contextlib.ExitStack() as stack:
                server = stack.enter_context(Child('serving:serve_answers', workers=2, **times))
                load = stack.enter_context(Child('kills:load', prefix=ahead_of_others(2), port=server.hear()))
                wait_for(server, 2)
                load.tell('go', seconds=before + lame_duck + AFTER)
                time.sleep(before)
                server.process.send_signal(signal.SIGTERM)
                statuses.add(server.process.wait(DRAIN_TIMEOUT + START))
                found = load.hear()
                sent, answered = sent + found['sent'] - found['refused'], answered + found['answered']
                lost += len(found['lost'])
            with HTTPServer(2, lame_duck) as server, KeepAliveClients(server.port, '/README.md', CLIENTS) as kept:
                server.workers(2)
                kept.go(before)
                server.process.send_signal(signal.SIGTERM)
                kept.go(DRAIN_TIMEOUT)  # or until nobody is let in any more
                statuses.add(server.end()[0])
                kept_answered, kept_lost = kept_answered + kept.answered, kept_lost + kept.lost
            run.progress(index + 1, drains, 'drained')
        counts = {'drains': drains, 'accepted': sent, 'answered': answered, 'lost': lost}
        return {**counts, 'kept_answered': kept_answered, 'kept_lost': kept_lost, 'statuses': sorted(statuses)}


class Orphans(Case):
    name = 'M22'
    title = 'the parent of two workers is killed under 600 requests/s'
    seconds = 15
    goals = (
        Goal('who was accepted is answered', lambda m: m['lost'] == 0),
        Goal('the workers are gone within their drain timeout', lambda m: m['gone_s'] <= DRAIN_TIMEOUT),
    )

    def measure(self, run):
        before, lame_duck = run.seconds(BEFORE, 0.3), run.seconds(LAME_DUCK, 0.3)
        times = {'drain_timeout': DRAIN_TIMEOUT, 'lame_duck': lame_duck}
        with Child('serving:serve_answers', workers=2, **times) as server:
            with Child('kills:load', prefix=ahead_of_others(2), port=server.hear()) as load:
                pids = wait_for(server, 2).values()
                load.tell('go', seconds=before + lame_duck + AFTER)
                time.sleep(before)
                server.kill()
                gone = wait_until('they are gone', lambda: not any(map(is_there, pids)))
                found = load.hear()
        accepted = found['sent'] - found['refused']
        return {'accepted': accepted, 'answered': found['answered'], 'lost': len(found['lost']), 'gone_s': gone}


class Crashes(Case):
    name = 'M23'
    title = 'four workers that fail as soon as they start, for 60 s'
    seconds = 62
    goals = (
        Goal('the parent uses less than 1 % of a core', lambda m: m['cpu_share'] < 0.01, timed=True),
        Goal('and does not end', lambda m: m['alive']),
        Goal('one line in the log for each', lambda m: m['lines'] == m['crashes'] >= CRASHING),
    )

    def measure(self, run):
        with Child('serving:serve_nobody', workers=CRASHING) as server:
            server.hear()
            wait_until('each has failed', lambda: len(server.ask('lines')) >= CRASHING)
            cpu, seconds = server.cpu(), run.seconds(WATCHED, 0.5)
            wait(seconds, run, 'crashing')
            share = (server.cpu() - cpu) / seconds
            lines = server.ask('lines')
            crashes = sum('ended unasked (exit code 1)' in line for line in lines)
            alive = server.process.poll() is None
        return {'cpu_share': share, 'lines': len(lines), 'crashes': crashes, 'alive': alive}


class HTTPServer:
    """The example, with so many workers; a context manager."""

    def __init__(self, workers, lame_duck):
        options = {'--port': 0, '--root': '.', '--workers': workers, '--lame-duck': lame_duck}
        words = [str(word) for option in options.items() for word in option]
        command = [sys.executable, 'examples/http_server.py', *words]
        pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
        self.process = subprocess.Popen(command, cwd=PROJECT, env=environment(), **pipes)
        line = read_line(self.process, START)
        if not line.startswith('listening on 127.0.0.1:'):
            raise Failed(f'http_server.py does not listen: {line}')
        self.port = int(line.rpartition(':')[2])

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def workers(self, count=None):
        """The processes that it has started; with `count`, as soon as there are so many and no more."""
        found = children(self.process.pid)
        if count is not None:
            wait_until(f'it has {count} workers', lambda: len(children(self.process.pid)) == count)
            found = children(self.process.pid)
        return found

    def end(self):
        """Its status when it has ended, and what it has logged."""
        _, log = self.process.communicate(timeout=DRAIN_TIMEOUT + START)
        return self.process.returncode, log


def children(pid):
    """Whom a process has started; nobody once it is gone."""
    with contextlib.suppress(OSError), open(f'/proc/{pid}/task/{pid}/children') as file:
        return [int(child) for child in file.read().split()]
    return []


def is_there(pid):
    with contextlib.suppress(OSError), open(f'/proc/{pid}/stat') as file:
        return file.read().rpartition(')')[2].split()[0] != 'Z'
    return False


def wait_for(server, count):
    """By slot, the processes that serve, as soon as there are so many."""
    wait_until(f'{count} workers serve', lambda: len(server.ask('pids')) == count)
    return server.ask('pids')


def no_h11():
    try:
        import h11  # noqa: F401
    except ImportError:
        return 'no h11, which the HTTP server takes; pip install h11'
    return None


class Lines(logging.Handler):
    """What the reactor has logged."""

    def __init__(self):
        super().__init__()
        self.lines = []
        logging.getLogger('reactor').addHandler(self)
        logging.getLogger('reactor').propagate = False

    def emit(self, record):
        self.lines.append(record.getMessage())


def start(control, main, lame_duck=0, **options):
    """Serve with workers, and say the port; the parent can be asked about them."""
    raise_descriptor_limit()
    log = Lines()

    def on_start(r, team):
        control.attach(r, {'stats': team.stats, 'pids': team.pids, 'lines': lambda: log.lines})
        control.say(team.addresses[0][1])

    sys.exit(serve.run(main, listen=[('127.0.0.1', 0)], lame_duck=lame_duck, on_start=on_start, **options))


def serve_echo(control, **options):
    def main(r, listeners):
        r.listen_tcp(None, 0, echo, on_drain=go_on, sock=listeners[0])

    start(control, main, **options)


def serve_answers(control, **options):
    """A worker says which process it is at once, and answers a request a little later."""
    name = b'%d' % os.getpid()

    def greet(conn):
        conn.write(name)

    def on_data(conn, data):
        conn.busy = True
        conn.loop.call_later(WORK, answer, conn)

    def answer(conn):
        if not conn.closed:
            conn.write(b'.')
            conn.close()

    def main(r, listeners):
        r.listen_tcp(None, 0, on_data, on_connect=greet, sock=listeners[0])

    start(control, main, **options)


def serve_nobody(control, **options):
    """Workers that fail at once."""

    def main(r, listeners):
        os._exit(1)  # an exception would be told to the parent's parent

    start(control, main, **options)
