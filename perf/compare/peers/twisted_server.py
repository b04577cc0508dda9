"""A server on Twisted's epoll reactor, with TCP_NODELAY as Twisted's documentation advises.

The server uses protocols and a producer, and creates no Deferred while it handles a request.
"""

from common import CHUNK, LARGE_REPLY, LAST_REPLY, LATE_REPLY, MESSAGE, REPLY, arguments, listening
from twisted.internet import reactor
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer


class Reply(Protocol):
    def connectionMade(self):
        self.transport.setTcpNoDelay(True)

    def dataReceived(self, data):
        self.transport.write(REPLY)


class ReplyAndClose(Reply):
    def dataReceived(self, data):
        self.transport.write(LAST_REPLY)
        self.transport.loseConnection()


class ReplyLarge(Reply):
    def dataReceived(self, data):
        self.transport.write(LARGE_REPLY)


@implementer(IPushProducer)
class Pump(Reply):
    def dataReceived(self, data):
        self.transport.registerProducer(self, streaming=True)
        self.resumeProducing()

    def resumeProducing(self):
        self.paused = False
        while not self.paused:
            self.transport.write(CHUNK)

    def pauseProducing(self):
        self.paused = True

    stopProducing = pauseProducing


class ReplyLate(Reply):
    def dataReceived(self, data):
        reactor.callLater(delay, self.answer)

    def answer(self):
        self.transport.write(LATE_REPLY)
        self.transport.loseConnection()


class Broadcast(Reply):
    def connectionMade(self):
        self.transport.setTcpNoDelay(True)
        members.add(self.transport)

    def connectionLost(self, reason):
        members.discard(self.transport)

    def dataReceived(self, data):
        for member in members:
            member.write(MESSAGE)


members = set()
port, workload, delay = arguments()
kinds = {'keepalive': Reply, 'churn': ReplyAndClose, 'large': ReplyLarge, 'pump': Pump}
kinds |= {'seed': ReplyLate, 'pending': ReplyLate, 'broadcast': Broadcast}
at = reactor.listenTCP(port, Factory.forProtocol(kinds[workload]), backlog=4096, interface='127.0.0.1').getHost()
listening((at.host, at.port))
reactor.run()
