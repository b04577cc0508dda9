"""Daytime (RFC 867): tells the time to whoever connects, and closes.

Run it:    python examples/daytime.py            (--port 1313)
Ask:       nc 127.0.0.1 1313                     and it prints date and time
"""

import argparse
import time

import reactor


def on_connect(conn):
    conn.write(time.strftime('%A, %B %d, %Y %H:%M:%S-%Z\r\n').encode())
    conn.close()  # after what was written


def main(r, port):
    server = r.listen_tcp('127.0.0.1', port, on_connect=on_connect)
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=1313)
    port = options.parse_args().port
    try:
        reactor.run(lambda r: main(r, port))
    except KeyboardInterrupt:
        print('bye')
