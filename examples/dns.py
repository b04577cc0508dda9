"""Names and addresses, looked up many at once while the loop goes on.

Run it:    python examples/dns.py localhost example.com 127.0.0.1      (--timeout 5)
Seen:      a line for each as its answer arrives: the addresses of a name, the name of an address, or what went wrong
"""

import argparse

import reactor


def main(r, names, timeout):
    def look_up(name):
        def on_done(found, error):
            if error is not None:
                print(f'{name}: {error}', flush=True)
            else:
                print(f'{name}: {found if isinstance(found, str) else ", ".join(found)}', flush=True)

        try:
            r.resolve_address(name, on_done, timeout=timeout)
        except ValueError:  # not written in numbers, so it is a name
            r.resolve(name, on_done, timeout=timeout)

    for name in names:
        look_up(name)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('names', nargs='+', help='names or addresses')
    options.add_argument('--timeout', type=float, default=5, help='seconds for each')
    args = options.parse_args()
    reactor.run(lambda r: main(r, args.names, args.timeout))
