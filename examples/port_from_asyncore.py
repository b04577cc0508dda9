"""A small command server, ported from asyncore: `asyncore_original.py` beside it is what it was, with the same answers.

Run it:    python examples/port_from_asyncore.py            (--port 2525)
Ask it:    nc -C 127.0.0.1 2525                             and type: say hello, count, quit

What became what:
    a dispatcher, its sockets and its buffers    functions, and `conn.data` for what belongs to one connection
    handle_accepted, handle_read, handle_close   on_connect, on_data (here: whole lines), on_close
    set_terminator, collect_incoming_data        framing.lines(on_line, limit=...)
    writable, handle_write, initiate_send        nothing: what could not be sent at once is sent by the reactor
    close_when_done                              close
    asyncore.loop()                              reactor.run(main)
"""

import argparse

import reactor
from reactor import framing

LONGEST_LINE = 4096


def on_connect(conn):
    conn.data = 0  # commands so far
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
            conn.close()  # after what was written, and no line is told any more
        case _:
            conn.write(b'500 unknown\r\n')


def main(r, port):
    server = r.listen_tcp('127.0.0.1', port, framing.lines(on_line, limit=LONGEST_LINE), on_connect=on_connect)
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=2525)
    port = options.parse_args().port
    try:
        reactor.run(lambda r: main(r, port))
    except KeyboardInterrupt:
        print('bye')
