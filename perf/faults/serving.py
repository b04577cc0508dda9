"""Workers of `reactor.serve` under load are replaced (M13), drained (M21) and orphaned (M22), or crash (M23).

Every connection that the kernel accepted for us must be answered. A refused connection loses no request, and is counted
separately.
"""

import contextlib
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
from .programs import Lines, echo, resume

RELOADS, DRAINS = 100, 20
CLIENTS = 50  # keep-alive connections
BEFORE, AFTER = 1.0, 0.5  # seconds of load before the fault, and after accepting has stopped
LAME_DUCK = 1.0  # seconds for which a draining server still accepts connections
START = 20  # seconds within which a server must be listening
DRAIN_TIMEOUT = 10.0  # seconds for requests in progress when a server ends
WORK = 0.02  # seconds until a worker answers a request
WATCHED = 60.0  # seconds for which crashing workers are observed
CRASHING = 4  # workers that crash
QUIET = 50  # workers without clients
SETTLE = 3.0  # seconds until the workers are measured
COUNTED = 'reads', 'bytes_in', 'writes', 'bytes_out', 'timers_fired'


class Reloads(Case):
    name = 'M13'
    title = 'http_server.py: two workers are replaced 100 times, while wrk keeps 50 connections busy'
    seconds = 330
    needs = ('wrk',)
    goals = (
        Goal('no socket error: connect, read, write, timeout', lambda m: not m['errors']),
        Goal('every response is 200', lambda m: not m['other_answers']),
        Goal('both workers are new after each reload', lambda m: m['replaced'] == 2 * m['reloads']),
        Goal('nothing is logged', lambda m: not m['log']),
    )

    def missing(self):
        return super().missing() or no_h11()

    def measure(self, run):
        reloads = run.count(RELOADS, 2)
        with HTTPServer(2, run.seconds(LAME_DUCK, 0.3)) as server:
            seen = set(server.workers(2))
            with KeepAliveClients(server.port, '/README.md', CLIENTS) as kept:
                wait_until('both workers serve', lambda: kept.go(0.1) or kept.answered > 2 * CLIENTS)
            wrk = Wrk(server.port, '/README.md', CLIENTS)
            time.sleep(run.seconds(BEFORE, 0.3))
            for index in range(reloads):
                old = server.workers(2)
                server.process.send_signal(signal.SIGHUP)
                wait_until('both workers are replaced', lambda old=old: not set(old) & set(server.workers()))
                seen |= set(server.workers(2))
                run.progress(index + 1, reloads, 'replaced')
            found = wrk.end()
            server.process.terminate()
            status, log = server.end()
        return {'reloads': reloads, 'replaced': len(seen) - 2, **found, 'status': status, 'log': log}


class Drains(Case):
    name = 'M21'
    title = 'SIGTERM under load, 20 times: 600 connections/s with one request each, then 50 keep-alive connections'
    seconds = 130
    goals = (
        Goal('every accepted connection is answered', lambda m: m['lost'] == 0),
        Goal('every request on a keep-alive connection is answered', lambda m: m['kept_lost'] == 0),
        Goal('the exit status is 0', lambda m: m['statuses'] == [0]),
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
                load = stack.enter_context(Child('kills:load', prefix=ahead_of_others(2), port=server.receive()))
                wait_for(server, 2)
                load.send('go', seconds=before + lame_duck + AFTER)
                time.sleep(before)
                server.process.send_signal(signal.SIGTERM)
                statuses.add(server.process.wait(DRAIN_TIMEOUT + START))
                found = load.receive()
                sent, answered = sent + found['sent'] - found['refused'], answered + found['answered']
                lost += len(found['lost'])
            with HTTPServer(2, lame_duck) as server, KeepAliveClients(server.port, '/README.md', CLIENTS) as kept:
                server.workers(2)
                kept.go(before)
                server.process.send_signal(signal.SIGTERM)
                kept.go(DRAIN_TIMEOUT)  # `go` returns earlier if all clients have been refused
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
        Goal('every accepted connection is answered', lambda m: m['lost'] == 0),
        Goal('the workers end within their drain timeout', lambda m: m['gone_s'] <= DRAIN_TIMEOUT),
    )

    def measure(self, run):
        before, lame_duck = run.seconds(BEFORE, 0.3), run.seconds(LAME_DUCK, 0.3)
        times = {'drain_timeout': DRAIN_TIMEOUT, 'lame_duck': lame_duck}
        with Child('serving:serve_answers', workers=2, **times) as server:
            with Child('kills:load', prefix=ahead_of_others(2), port=server.receive()) as load:
                pids = wait_for(server, 2).values()
                load.send('go', seconds=before + lame_duck + AFTER)
                time.sleep(before)
                server.kill()
                gone = wait_until('the workers have ended', lambda: not any(map(is_running, pids)))
                found = load.receive()
        accepted = found['sent'] - found['refused']
        return {'accepted': accepted, 'answered': found['answered'], 'lost': len(found['lost']), 'gone_s': gone}


class Crashes(Case):
    name = 'M23'
    title = 'four workers that fail as soon as they start, for 60 s'
    seconds = 62
    goals = (
        Goal('the parent uses less than 1 % of a core', lambda m: m['cpu_share'] < 0.01, timed=True),
        Goal('the parent does not end', lambda m: m['alive']),
        Goal('each crash is one line in the log', lambda m: m['lines'] == m['crashes'] >= CRASHING),
    )

    def measure(self, run):
        with Child('serving:crash', workers=CRASHING) as server:
            server.receive()
            wait_until('each worker has failed', lambda: len(server.ask('lines')) >= CRASHING)
            cpu, seconds = server.cpu(), run.seconds(WATCHED, 0.5)
            wait(seconds, run, 'crashing')
            share = (server.cpu() - cpu) / seconds
            lines = server.ask('lines')
            crashes = sum('ended unexpectedly (exit code 1)' in line for line in lines)
            alive = server.process.poll() is None
        return {'cpu_share': share, 'lines': len(lines), 'crashes': crashes, 'alive': alive}


class Quiet(Case):
    name = 'O2'
    title = 'a parent and 50 workers without clients, for 30 s'
    seconds = 60
    goals = (
        Goal('the parent uses less than 1 % of a core', lambda m: m['cpu_share'] < 0.01, timed=True),
        Goal('the counters show nothing of the reports', lambda m: not any(m['counted'].values())),
    )

    def measure(self, run):
        workers = run.count(QUIET, 2)
        with Child('serving:serve_echo', workers=workers) as server:
            server.receive()
            wait_for(server, workers)
            wait(run.seconds(SETTLE, 0.5), run, 'started')
            before, cpu, began = total(server), server.cpu(), time.monotonic()
            wait(run.seconds(WATCHED / 2, 1.5), run, f'{workers} quiet workers')
            share = (server.cpu() - cpu) / (time.monotonic() - began)
            after = total(server)
        counted = {name: after[name] - before[name] for name in COUNTED}
        return {'workers': workers, 'cpu_share': share, 'counted': counted}


def total(server):
    """Return the sum of some counters over all workers."""
    workers = server.ask('stats').values()
    return {name: sum(counters[name] for counters in workers) for name in COUNTED}


class HTTPServer:
    """A context manager that runs examples/http_server.py with `workers` worker processes."""

    def __init__(self, workers, lame_duck):
        options = {'--port': 0, '--root': '.', '--workers': workers, '--lame-duck': lame_duck}
        words = [str(word) for option in options.items() for word in option]
        command = [sys.executable, 'examples/http_server.py', *words]
        pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
        self.process = subprocess.Popen(command, cwd=PROJECT, env=environment(), **pipes)
        line = read_line(self.process, START)
        if not line.startswith('listening on 127.0.0.1:'):
            raise Failed(f'http_server.py does not listen: it printed {line!r}')
        self.port = int(line.rpartition(':')[2])

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def workers(self, count=None):
        """Return the pids of the workers; with `count`, wait until there are exactly that many."""
        found = children(self.process.pid)
        if count is not None:
            wait_until(f'http_server.py has {count} workers', lambda: len(children(self.process.pid)) == count)
            found = children(self.process.pid)
        return found

    def end(self):
        """Wait until the server has ended; return its exit status and its log."""
        _, log = self.process.communicate(timeout=DRAIN_TIMEOUT + START)
        return self.process.returncode, log


def children(pid):
    """Return the pids of a process's children; [] when the process has ended."""
    with contextlib.suppress(OSError), open(f'/proc/{pid}/task/{pid}/children') as file:
        return [int(child) for child in file.read().split()]
    return []


def is_running(pid):
    """Return whether a process exists and is not a zombie."""
    with contextlib.suppress(OSError), open(f'/proc/{pid}/stat') as file:
        return file.read().rpartition(')')[2].split()[0] != 'Z'
    return False


def wait_for(server, count):
    """Wait until `count` workers serve; return {slot: pid}."""
    wait_until(f'{count} workers serve', lambda: len(server.ask('pids')) == count)
    return server.ask('pids')


def no_h11():
    try:
        import h11  # noqa: F401
    except ImportError:
        return 'the HTTP server needs h11: pip install h11'
    return None


class AllLines(Lines):
    """Keeps every line that the reactor logs."""

    def __init__(self):
        super().__init__()
        self.all = []

    def emit(self, record):
        self.all.append(record.getMessage())


def start(control, main, lame_duck=0, **options):
    """Serve with workers, send the port to the parent, and answer the parent's questions about the workers."""
    raise_descriptor_limit()
    log = AllLines()

    def on_start(r, team):
        control.attach(r, {'stats': team.stats, 'pids': team.pids, 'lines': lambda: log.all})
        control.send(team.addresses[0][1])

    sys.exit(serve.run(main, listen=[('127.0.0.1', 0)], lame_duck=lame_duck, on_start=on_start, **options))


def serve_echo(control, **options):
    def main(r, listeners):
        r.listen_tcp(None, 0, echo, on_drain=resume, sock=listeners[0])

    start(control, main, **options)


def serve_answers(control, **options):
    """Run workers that send their pid to each client at once, and answer each request a little later."""
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


def crash(control, **options):
    """Run workers that fail as soon as they start."""

    def main(r, listeners):
        os._exit(1)  # not an exception, which would be sent through the pipe to the parent

    start(control, main, **options)
