"""Correct code that runs a service and observes it."""

from __future__ import annotations

import logging
from typing import Any, assert_type

import reactor
from reactor import Listener, Reactor, observe, serve
from reactor.serve import WorkerListeners, Workers, systemd
from reactor.serve.certificates import Certificates


def main(r: Reactor, listeners: list[Any]) -> None:
    certificates = Certificates({None: ('cert.pem', None)})
    for sock in listeners:
        r.listen_tcp(None, 0, lambda conn, data: conn.write(data), sock=sock, ssl=certificates.context)
    observe.serve_control(r, '/run/app.sock', mode=0o660, drain=r.drain)
    assert_type(observe.serve_page(r, port=9080, about='mine'), Listener)
    assert_type(observe.serve_page(r, recorder=observe.FlightRecorder(r)), Listener)
    systemd.watchdog(r)


def main_with_slot(r: Reactor, listeners: WorkerListeners) -> None:
    assert_type(listeners.slot, int)
    logging.FileHandler('log').setFormatter(serve.JSONFormatter(worker=listeners.slot))
    logging.FileHandler('log').setFormatter(serve.TextFormatter(utc=False))


def on_start(r: Reactor, workers: Workers) -> None:
    r.call_later(3600, workers.replace)
    observe.serve_control(r, '/run/parent.sock', drain=workers.drain)
    r.call_later(7200, workers.drain)
    observe.serve_control(r, '/run/app.sock', workers=workers)
    assert_type(observe.source(r)(), dict[str, dict[str, Any]])


raise SystemExit(serve.run(main, workers=2, listen=['0.0.0.0:8000'], on_start=on_start, debug=True))
raise SystemExit(serve.run(main_with_slot, log='json'))


def through_the_package(r: Reactor) -> None:
    assert_type(reactor.observe.serve_page(r), Listener)
    reactor.serve.run(main_with_slot)
    reactor.testing.Simulation(1, until_stop=True)
