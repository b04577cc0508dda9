"""The loop workloads on Twisted: timers, calls from threads, connecting. callLater(0) serves as call_soon."""

import loop_figures
from twisted.internet import reactor
from twisted.internet.protocol import ClientFactory, Protocol


class Client(Protocol):
    def connectionMade(self):
        self.transport.write(self.factory.request)

    def connectionLost(self, reason):
        self.factory.on_close()


class Loop:
    """The methods that loop_figures calls."""

    call_later = staticmethod(reactor.callLater)
    call_soon_threadsafe = staticmethod(reactor.callFromThread)
    stop = staticmethod(reactor.crash)  # run() can be called again after crash(), but not after stop()

    def call_soon(self, fn, *args):
        reactor.callLater(0, fn, *args)

    def run(self):
        reactor.run(installSignalHandlers=False)

    def connect(self, port, request, on_close):
        factory = ClientFactory.forProtocol(Client)
        factory.noisy, factory.request, factory.on_close = False, request, on_close
        reactor.connectTCP('127.0.0.1', port, factory)


loop_figures.main(Loop)
