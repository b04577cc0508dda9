"""Test signals and calls from threads against a model: real signals, real threads, and a full wakeup socket."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from reactor import HandleClosed, Reactor
from tests.helpers.models_support import Machine, Raised, case_of
from tests.helpers.support import fill

if not hasattr(signal, 'SIGUSR1'):
    pytest.skip('this platform has no SIGUSR1 to raise', allow_module_level=True)

SIGNALS = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH]
SIGNUM = st.sampled_from(SIGNALS)
TIMES = st.sampled_from([1, 1, 3, 50])
SCRIPT = st.lists(st.one_of(st.just('call'), st.just('call'), SIGNUM), max_size=20)


class Doorbell(Machine):
    """Each signal is delivered at least once after it was last raised. Each call of a thread is made once, in order."""

    @initialize()
    def begin(self):
        self.before = {signum: signal.signal(signum, signal.SIG_IGN) for signum in SIGNALS}
        self.r = Reactor(catch_errors=self.caught)
        self.handlers = {}  # the installed handler of each signal
        self.raised = set()  # signals raised since their last delivery
        self.delivered = []  # the signals delivered so far
        self.count = Counter()  # for each signal, the most deliveries that can be pending
        self.made = {}  # for each thread, the numbers of its calls, in the order in which they ran
        self.asked = {}  # for each thread, the number of the last call that it requested
        self.names = 0

    # -- callbacks

    def on_signal(self, number, signum, does):
        assert self.handlers.get(signum) == number, 'the handler was replaced or removed'
        assert not self.inside, 'called in signal context'
        assert self.count[signum] > 0, 'a signal that was not raised'
        self.count[signum] -= 1
        self.raised.discard(signum)
        self.delivered.append(signum)
        if does == 'raise':
            raise Raised
        if does == 'again' and self.raised_again < 3:
            self.raised_again += 1
            self.send(signum)
        elif does == 'remove':
            self.remove(signum)

    inside, raised_again = False, 0

    def on_call(self, name, number, does):
        assert not self.inside
        self.made.setdefault(name, []).append(number)
        if does == 'raise':
            raise Raised
        if does == 'call':
            self.call(name, '')

    # -- actions

    def call(self, name, does):
        number = self.asked[name] = self.asked.get(name, -1) + 1
        self.r.call_soon_threadsafe(self.on_call, name, number, does)

    def send(self, signum):
        if signum in self.handlers:
            self.raised.add(signum)
            self.count[signum] += 1
        before, self.inside = self.inside, True
        os.kill(os.getpid(), signum)
        self.inside = before

    @rule(signum=SIGNUM, does=st.sampled_from(['', '', 'raise', 'again', 'remove']))
    def add_handler(self, signum, does):
        self.names += 1
        self.handlers[signum] = self.names
        self.r.add_signal_handler(signum, self.on_signal, self.names, signum, does)

    @rule(signum=SIGNUM)
    def remove_handler(self, signum):
        self.remove(signum)

    def remove(self, signum):
        assert self.r.remove_signal_handler(signum) == (self.handlers.pop(signum, None) is not None)
        self.raised.discard(signum)
        self.count[signum] = 0
        assert signal.getsignal(signum) is signal.SIG_IGN, 'the previous handler is not restored'

    @rule(signum=SIGNUM, times=TIMES)
    def raise_signal(self, signum, times):
        for _ in range(times):
            self.send(signum)

    @rule(times=TIMES, does=st.sampled_from(['', 'raise', 'call']))
    def call_here(self, times, does):
        for _ in range(times):
            self.call('here', does)

    @precondition(lambda self: self.handlers)
    @rule()
    def fill_the_doorbell(self):
        fill(self.r._wakeup._bell)

    @precondition(lambda self: len(self.asked) < 12)
    @rule(scripts=st.lists(SCRIPT, min_size=1, max_size=3), running=st.booleans())
    def threads(self, scripts, running):
        """Let threads make calls and raise signals, while the loop is running or while it is not."""
        raised, workers = set(), []
        for script in scripts:
            self.names += 1
            workers.append(threading.Thread(target=self.work, args=(f'thread {self.names}', script)))
            raised.update(signum for signum in script if signum != 'call')
        self.count.update(what for script in scripts for what in script if what in self.handlers)
        delivered = len(self.delivered)
        for worker in workers:
            worker.start()
        while running and any(worker.is_alive() for worker in workers):
            self.turns(self.r)
        for worker in workers:
            worker.join()
        if running:
            self.turns(self.r, 3)
            assert raised & set(self.handlers) <= set(self.delivered[delivered:]), 'a signal was lost'
        else:
            self.raised |= raised & set(self.handlers)

    def work(self, name, script):
        for what in script:
            if what == 'call':
                self.call(name, '')
            else:
                os.kill(os.getpid(), what)

    @rule()
    def turn(self):
        self.check_turns()

    def check_turns(self):
        self.raised_again = 0
        self.turns(self.r, 8)  # a callback may make another call or raise another signal
        assert not self.raised, 'a signal was lost'
        for name, count in self.asked.items():
            assert self.made.get(name, []) == list(range(count + 1)), f'calls of {name} were lost, doubled or reordered'

    # -- invariants

    @invariant()
    def order_is_kept(self):
        for numbers in self.made.values():
            assert numbers == list(range(len(numbers)))

    def teardown(self):
        if not hasattr(self, 'r'):
            return
        try:
            self.check_turns()
            assert not self.r._wakeup.calls
            self.r.close()
            with pytest.raises(HandleClosed):
                self.r.call_soon_threadsafe(print)
            assert signal.set_wakeup_fd(-1) == -1, 'a wakeup descriptor is left installed'
            for signum in SIGNALS:
                assert signal.getsignal(signum) is signal.SIG_IGN
        finally:
            self.r.close()
            signal.set_wakeup_fd(-1)
            for signum, handler in self.before.items():
                signal.signal(signum, handler)


TestDoorbell = case_of(Doorbell)
