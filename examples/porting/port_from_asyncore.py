"""A small command server, ported from `asyncore_original.py`. It gives the same answers as the original.

    $ python examples/porting/port_from_asyncore.py
    listening on 127.0.0.1:2525

In another terminal (the commands are `say TEXT`, `count` and `quit`):

    $ nc -C 127.0.0.1 2525
    220 ready
    say hello
    250 hello

How the parts were translated:
    a dispatcher, its sockets and its buffers    functions, and `conn.data` for the state of one connection
    handle_accepted, handle_read, handle_close   on_connect, on_data (here: whole lines), on_close
    set_terminator, collect_incoming_data        framing.lines(on_line, limit=...)
    writable, handle_write, initiate_send        nothing: the reactor sends later what could not be sent at once
    close_when_done                              close
    asyncore.loop()                              reactor.run(main)
"""

import argparse
import signal

import reactor
from reactor import framing

LONGEST_LINE = 4096


def on_connect(conn):
    conn.data = 0  # number of commands
    conn.write(b'220 ready\r\n')


def on_line(conn, line):
    conn.data += 1
    command, _, text = line.partition(b' ')
    match command.lower():
        case b'say':
            conn.write(b'250 ' + text.strip() + b'\r\n')
        case b'count':
            conn.write(b'250 %d\r\n' % conn.data)
        case b'quit':
            conn.write(b'221 bye\r\n')
            conn.close()  # closes when all bytes have been sent; `on_line` is not called again
        case _:
            conn.write(b'500 unknown\r\n')


def main(r, port):
    server = r.listen_tcp('127.0.0.1', port, framing.lines(on_line, limit=LONGEST_LINE), on_connect=on_connect)
    for signum in signal.SIGINT, signal.SIGTERM:
        r.add_signal_handler(signum, r.stop)
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=2525)
    port = options.parse_args().port
    reactor.run(lambda r: main(r, port))
    print('bye')
