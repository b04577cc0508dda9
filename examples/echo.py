"""Echo (RFC 862): sends back whatever comes, until the client ends.

Run it:    python examples/echo.py            (--port 7007)
Talk:      nc 127.0.0.1 7007                  and every line comes back

A client that sends and never reads is not read any further either: the echo waits for it.
"""

import argparse

import reactor


def on_data(conn, data):
    if not conn.write(data):
        conn.pause_reading()


def on_drain(conn):
    conn.resume_reading()


def main(r, port):
    server = r.listen_tcp('127.0.0.1', port, on_data, on_drain=on_drain)
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=7007)
    port = options.parse_args().port
    try:
        reactor.run(lambda r: main(r, port))
    except KeyboardInterrupt:
        print('bye')
