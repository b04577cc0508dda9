"""Many WebSocket feeds in one thread: the package websocket-client, run by the reactor instead of by `rel`.

    $ pip install websocket-client
    $ PYTHONPATH=. python3 examples/recipes/websocket_client_feeds.py ws://127.0.0.1:8765 ws://127.0.0.1:8765
    ws://127.0.0.1:8765: connected
    ws://127.0.0.1:8765: connected

It prints what the server sends; websockets_sans_io.py, in the same folder, is a server to begin with.

When the server dies, each feed connects again after `reconnect` seconds, and the library calls `on_reconnect`, or else
`on_open`. It does not call `on_error` and `on_close` then. Messages of the meantime are lost; a program that must know
how many needs numbers in its messages. The dispatcher counts the bytes that it could not send (`dropped`).

Measured with tests/recipes/test_websocket_client_feeds.py (websocket-client 1.9.2, rel 0.4.9.27, Python 3.11): 100 idle
feeds wake the process once a second, and with rel 1,400 times a second. `app.close()` takes 0.5 ms, and with rel 3 s,
because rel sends the close frame only after `close` has stopped waiting for the answer. Over two kills of the server,
each of 100 feeds was connected three times, and each knew exactly how many messages it had missed.

The library connects with a blocking socket, so an unreachable server stops the loop for `websocket.setdefaulttimeout`
seconds. Over TLS, its reads block, too, in the middle of a frame. `ping_interval=` works, and costs a thread for each
feed.
"""

import logging
import os
import socket
import sys
import threading
from functools import partial

import websocket

import reactor
from reactor import READ, WRITE


class Dispatcher:
    """The `dispatcher=` of `WebSocketApp.run_forever`. Each app needs one of its own."""

    def __init__(self, r):
        self.r = r
        self.thread = threading.get_ident()
        self.timers = {}  # the library never has two timers for the same callback
        self.sock = self.watch = None
        self.unsent = bytearray()
        self.dropped = 0  # bytes that were passed to `send`, and not sent before the connection ended

    def signal(self, signum, callback):
        """Do nothing: without a handler for SIGINT, the reactor raises KeyboardInterrupt, which ends `run`."""

    def abort(self):
        self.r.stop()

    def timeout(self, seconds, callback, *args):
        if args:  # only the timer of a reconnection has arguments: the library has given up this connection
            self.end()
        if callback in self.timers:
            self.timers[callback].cancel()
        self.timers[callback] = self.r.call_later(seconds, self.time_out, seconds, callback, args)

    def time_out(self, seconds, callback, args):
        del self.timers[callback]
        try:
            again = callback(*args)
        except websocket.WebSocketTimeoutException:  # no pong: now `ready` finds that the connection has ended
            self.sock.shutdown(socket.SHUT_RDWR)
            again = False
        if again:
            self.timeout(seconds, callback, *args)

    def read(self, sock, callback):
        """Watch a connection that the library has just made, until it ends."""
        self.end()
        self.use(sock)
        if not hasattr(sock, 'pending'):  # a part of a frame must not block the loop; TLS has no such mode here
            sock.setblocking(False)
        # The library closes its socket without telling the dispatcher, so the reactor watches a copy of it.
        events = READ | (WRITE if self.unsent else 0)
        self.watch = self.r.watch_fd(os.dup(sock.fileno()), events, self.ready, sock, callback)

    def ready(self, watch, event, sock, callback):
        if event == WRITE:
            return self.flush()
        more = True
        try:
            more = callback()
            while more and not watch.closed and getattr(sock, 'pending', int)():
                more = callback()  # OpenSSL has decrypted more bytes than this frame, which no selector reports
        except BlockingIOError:
            pass  # the library keeps the part of the frame that has arrived
        except Exception as exc:
            logging.warning('invalid data from the WebSocket server, closing the connection: %r', exc)
            sock.shutdown(socket.SHUT_RDWR)
        if not more and watch is self.watch:
            self.end()

    def end(self):
        if self.watch is not None:
            fd = self.watch.fileno()
            self.watch.close()
            self.watch = None
            os.close(fd)

    def use(self, sock):
        if sock is not self.sock:
            self.dropped += len(self.unsent)
            self.sock, self.unsent = sock, bytearray()

    def buffwrite(self, sock, data, send, on_error):
        if threading.get_ident() != self.thread:  # with `ping_interval=`, pings are sent by a thread
            return self.r.call_soon_threadsafe(self.buffwrite, sock, data, send, on_error)
        self.use(sock)
        self.unsent += data
        self.flush()

    def flush(self):
        try:
            while self.unsent:
                del self.unsent[: self.sock.send(self.unsent)]
        except BlockingIOError:
            pass
        except OSError:  # `ready` finds out, too, and the library learns it from there
            self.dropped += len(self.unsent)
            self.unsent.clear()
        if self.watch is not None:
            self.watch.set_events(READ | (WRITE if self.unsent else 0))

    def stop(self, app):
        """Close an app, and do not connect again. Then its `on_close` is called, if it was connected."""
        for timer in self.timers.values():
            timer.cancel()
        app.close(timeout=1)


def follow(r, url, reconnect=1, **callbacks):
    """Start a feed: the callbacks are those of `WebSocketApp`. Returns the app and its dispatcher."""
    app, dispatcher = websocket.WebSocketApp(url, **callbacks), Dispatcher(r)
    r.call_soon(partial(app.run_forever, dispatcher=dispatcher, reconnect=reconnect))
    return app, dispatcher


def main(r):
    for url in sys.argv[1:]:
        follow(r, url, on_message=lambda app, text: print(f'{app.url}: {text}', flush=True),
               on_open=lambda app: print(f'{app.url}: connected', flush=True))  # fmt: skip


if __name__ == '__main__':
    websocket.setdefaulttimeout(5)  # the library connects with a blocking socket: limit how long the loop can wait
    try:
        reactor.run(main)
    except KeyboardInterrupt:
        print('bye')
