"""The server of a soak: every kind of service on one reactor, with callbacks that raise when a client requests it.

The server does not protect itself: every limit here is an option of the reactor.
"""

import collections
import functools
import resource
import signal
import sys
import tempfile

import reactor
from reactor import framing

from .common import BLOCK, CommandSocket, LogWatch, Planned, by_words, objects, part, reason

FILE_BLOCKS = 8
CHUNK = 65536
LONGEST_REQUEST = 4096
CARELESS_LIMIT = 256 << 10  # limit in bytes for the queue of the service that ignores back-pressure
TIMER_CHURN = 0.05  # seconds from one burst of timers to the next


class Server:
    """The services, and counts of how their connections ended."""

    def __init__(self, r, patience, folder, context):
        self.r = r
        self.patience = patience
        self.file = tempfile.TemporaryFile()
        self.file.write(BLOCK * FILE_BLOCKS)
        self.file.flush()
        self.ends = collections.Counter()
        self.counts = collections.Counter()
        self.listeners = {}
        limits = {'idle_timeout': 3 * patience, 'write_timeout': patience, 'linger': 2 * patience}
        tcp = functools.partial(r.listen_tcp, '127.0.0.1', 0, **limits)
        echo = functools.partial(tcp, on_drain=resume)
        self.add('echo', echo, on_echo)
        self.add('named', functools.partial(r.listen_tcp, 'localhost', 0, **limits), on_echo, on_drain=resume)
        self.add('tls', echo, on_echo, ssl=context, handshake_timeout=patience)
        self.add('unix', functools.partial(r.listen_unix, f'{folder}/unix', **limits), on_echo, on_drain=resume)
        self.add('careless', tcp, on_careless, max_buffered=CARELESS_LIMIT)
        self.add('forgiving', echo, on_asked_to_raise, on_error=self.on_error)
        self.add('unforgiving', echo, on_asked_to_raise)
        self.add('raising', tcp, on_echo, on_connect=raise_planned)
        request = framing.delimited(self.on_request, b'\r\n\r\n', limit=LONGEST_REQUEST)
        self.add('http', tcp, request, on_connect=self.on_visitor, on_drain=resume)
        self.add('download', tcp, framing.lines(self.on_order), on_drain=pump)
        self.add('task', tcp, framing.lines(self.on_task))
        self.udp = r.bind_udp('127.0.0.1', 0, on_datagram)
        r.add_signal_handler(signal.SIGUSR1, self.on_signal)
        self.churn = r.call_every(TIMER_CHURN, self.on_churn)

    def add(self, name, listen, on_data, **options):
        on_close = functools.partial(self.on_close, name)
        self.listeners[name] = listen(on_data=on_data, on_close=on_close, **options)

    def on_close(self, name, conn, exc):
        self.ends[name, reason(exc)] += 1
        if name == 'http' and conn.data is not None:
            conn.data.cancel()
        if name in ('forgiving', 'unforgiving') and conn.data == 'raise at the end':
            raise Planned

    # -- requests, downloads and tasks

    def on_visitor(self, conn):
        conn.data = self.r.call_later(self.patience, conn.abort)  # only a complete request cancels this timer

    def on_request(self, conn, request):
        conn.data.cancel()
        milliseconds, size = request.rsplit(b'/', 2)[1:]
        if milliseconds == b'raise':
            self.r.call_later(0, raise_planned)
            conn.close()
        else:
            self.r.call_later(int(milliseconds) / 1000, answer, conn, int(size))

    def on_order(self, conn, line):
        how, size = line.split()
        if how == b'file':
            conn.send_file(self.file, 0, int(size))
        else:
            conn.data = [0, int(size)]
            pump(conn)

    def on_task(self, conn, line):
        try:
            if line == b'thread':
                self.r.run_in_thread(sum, range(1000), on_done=functools.partial(report, conn))
            elif line == b'raise':
                self.r.run_in_thread(raise_planned, on_done=functools.partial(report, conn))
            elif line == b'resolve':
                self.r.resolve('localhost', functools.partial(report, conn))
            else:
                self.r.spawn(['true'], on_exit=functools.partial(report_exit, conn))
        except OSError as exc:  # there is no free descriptor for a child
            report(conn, None, exc)

    # -- errors, signals and timers

    def on_error(self, conn, exc):
        self.counts['on_error'] += 1

    def on_signal(self):
        self.counts['signals'] += 1
        if not self.counts['signals'] % 10:
            raise Planned

    def on_churn(self):
        timers = [self.r.call_later(0.001 * index, passed) for index in range(100)]
        for timer in timers[::2]:
            timer.cancel()
        self.counts['beats'] += 1
        if not self.counts['beats'] % 100:
            raise Planned

    # -- commands from the main process

    def ports(self):
        found = {name: listener.address[1] for name, listener in self.listeners.items() if name != 'unix'}
        return {**found, 'udp': self.udp.address[1], 'unix': self.listeners['unix'].address}

    def sample(self, log):
        stats = self.r.stats()
        return {
            'objects': objects(),
            'accepts': stats.accepts,
            'open': stats.incoming,
            'ends': by_words(self.ends),
            'counts': dict(self.counts),
            'log': dict(log.counts),
            'unplanned': log.unplanned,
            'stats': stats.as_dict(),
        }

    def rest(self, resting):
        """Stop the bursts of timers, or start them again."""
        if resting:
            self.churn.cancel()
        else:
            self.churn = self.r.call_every(TIMER_CHURN, self.on_churn)
        return True


def passed():
    pass


def resume(conn):
    conn.resume_reading()


def on_echo(conn, data):
    if not conn.write(data):
        conn.pause_reading()


def on_careless(conn, data):
    conn.write(data)


def on_asked_to_raise(conn, data):
    if data.startswith(b'at the end'):
        conn.data = 'raise at the end'
        conn.close()
    elif data.startswith(b'written'):
        conn.write(b'written', raise_planned)
    else:
        raise Planned


def raise_planned(*args):
    raise Planned


def on_datagram(sock, data, address):
    if data.startswith(b'raise'):
        raise Planned
    sock.send(data, address)


def answer(conn, size):
    if not conn.closed:
        conn.writelines((b'%d\r\n' % size, part(0, size)))


def pump(conn):
    if conn.data is None:
        return
    position, size = conn.data
    while position < size:
        piece = part(position, min(CHUNK, size - position))
        position += len(piece)
        if not conn.write(piece):
            break
    conn.data[0] = position


def report(conn, result, error):
    if not conn.closed:
        conn.write(b'done\n' if error is None or isinstance(error, Planned) else b'failed\n')


def report_exit(conn, process, code, signum):
    report(conn, code, None if code == 0 else OSError(f'the child ended with {code}'))


def main(descriptor, patience, limit, folder):
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(limit), int(limit)))
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f'{folder}/server.pem', f'{folder}/server.key')
    log = LogWatch()
    with reactor.Reactor() as r:
        server = Server(r, float(patience), folder, context)
        commands = {'sample': functools.partial(server.sample, log), 'rest': server.rest}
        CommandSocket(r, int(descriptor), commands).send(server.ports())
        r.run()


if __name__ == '__main__':
    main(*sys.argv[1:])
