"""A connection to a D-Bus daemon that is made again when it ends. The program dbus_counter.py uses it.

It needs jeepney (`pip install jeepney`, or `apt-get install python3-jeepney`), which turns bytes into messages and does
no input or output. Descriptors cannot be passed to other programs over it.

When the daemon dies, the calls that were sent fail with the error of the connection. New calls wait for the next
daemon, within their time limit. After the connection is made again, the names and the subscriptions are requested
again, before these calls are sent. D-Bus does not repeat signals: `lost` counts those that had no daemon.
"""

from collections import deque
from functools import partial
from itertools import count

import jeepney
from jeepney.auth import BEGIN, AuthenticationError, Authenticator
from jeepney.bus import get_bus

import reactor

ERROR = 'org.freedesktop.DBus.Error.'


class Bus:
    """A connection to the bus at an address; 'SESSION' and 'SYSTEM' are the addresses in the environment.

    Attributes:
        on_up: Called as `on_up(name)` with our unique name on each new daemon.
        on_down: Called as `on_down(exc)` when a daemon has gone; exc is None if it has closed the connection.
        lost: How many signals were not sent, because there was no daemon.
    """

    def __init__(self, r, address, timeout=5):
        self.on_up = self.on_down = lambda _: None
        self.lost = 0
        self.requests = reactor.Requests(r, timeout=timeout)
        self.up = False
        self.waiting = deque()  # calls
        self.setup = []  # calls for each new daemon
        self.subscriptions = []
        self.methods = {}
        self.serials = count(1)
        connect = partial(r.connect_unix, get_bus(address), self._on_data, timeout=5)
        self.client = reactor.reconnect(connect, self._on_connect, self._on_down, first=0.1, most=2)

    def call(self, message, on_done):
        """Call a method; `on_done(values, error)` is called with the tuple that it returns, or with an error."""
        self.waiting.append((self.requests.add(on_done, id=next(self.serials)), message))
        self._flush()

    def call_on_each_daemon(self, message, on_done):
        self.setup.append((message, on_done))
        if self.up:
            self.call(message, on_done)

    def subscribe(self, rule, on_signal, on_done):
        """Call `on_signal(*values)` for each signal that matches. `on_done` is called when the daemon has agreed."""
        self.subscriptions.append((rule, on_signal))
        self.call_on_each_daemon(jeepney.message_bus.AddMatch(rule), on_done)

    def own(self, name, on_done):
        """Request a name. `on_done((1,), None)` is called when it is ours; another number: another program has it."""
        flags = jeepney.DBusNameFlags.do_not_queue
        self.call_on_each_daemon(jeepney.message_bus.RequestName(name, flags), on_done)

    def add_method(self, interface, member, fn):
        """Let others call `fn(*values)`, which returns a pair: the signature of the result, and a tuple of values."""
        self.methods[interface, member] = fn

    def emit(self, message):
        if self.up and not self.client.conn.closed:
            self.client.conn.write(message.serialise(next(self.serials)))
        else:
            self.lost += 1

    def _flush(self):
        while self.up and self.waiting:
            request, message = self.waiting.popleft()
            if not request.closed:  # it may have waited for too long
                self.client.conn.write(message.serialise(request.id))

    def _on_connect(self, conn):
        self.auth, self.parser = Authenticator(), jeepney.Parser()
        conn.write(self.auth.data_to_send())

    def _on_data(self, conn, data):
        if self.auth.authenticated:
            for message in self.parser.feed(data):
                self._on_message(conn, message)
            return
        try:
            self.auth.feed(data)
        except AuthenticationError as exc:
            conn.abort(exc)
            return
        if self.auth.authenticated:
            conn.write(BEGIN)
            later, self.waiting, self.up = self.waiting, deque(), True
            for message, on_done in [(jeepney.message_bus.Hello(), self._on_hello), *self.setup]:
                self.call(message, on_done)
            self.waiting = later
            self._flush()

    def _on_hello(self, values, error):
        if error is None:
            self.on_up(values[0])
        elif self.up:  # a daemon that does not answer
            self.client.conn.abort(error)

    def _on_message(self, conn, message):
        kind, fields = message.header.message_type, message.header.fields
        if kind is jeepney.MessageType.method_return:
            self.requests.answer(fields[jeepney.HeaderFields.reply_serial], message.body)
        elif kind is jeepney.MessageType.error:
            self.requests.fail(fields[jeepney.HeaderFields.reply_serial], jeepney.DBusErrorResponse(message))
        elif kind is jeepney.MessageType.signal:
            for rule, on_signal in self.subscriptions:
                if rule.matches(message):
                    on_signal(*message.body)
        else:
            answer = self._answer(message, fields.get(jeepney.HeaderFields.interface), fields)
            if not message.header.flags & jeepney.MessageFlag.no_reply_expected:
                conn.write(answer.serialise(next(self.serials)))

    def _answer(self, message, interface, fields):
        member = fields[jeepney.HeaderFields.member]
        fn = self.methods.get((interface, member))
        if fn is None:
            text = f'the interface {interface} has no method {member} here'
            return jeepney.new_error(message, ERROR + 'UnknownMethod', 's', (text,))
        try:
            return jeepney.new_method_return(message, *fn(*message.body))
        except Exception as exc:
            return jeepney.new_error(message, ERROR + 'Failed', 's', (f'{member} has failed: {exc!r}',))

    def _on_down(self, conn, exc, delay):
        if self.up or isinstance(exc, AuthenticationError):
            self.on_down(exc)
        if self.up:  # otherwise no call was sent
            self.up = False
            self.requests.fail_all(exc)
