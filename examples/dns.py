"""Look up many names and addresses at once, while the loop keeps running.

    $ python examples/dns.py localhost 127.0.0.1 nope.invalid
    localhost: ::1, 127.0.0.1
    127.0.0.1: localhost
    nope.invalid: cannot look up 'nope.invalid': [Errno -2] Name or service not known ...

One line is printed as each answer arrives: the addresses of a name, the name of an address, or the error.
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
        except ValueError:  # the word is not a numeric address, so it is a name
            r.resolve(name, on_done, timeout=timeout)

    for name in names:
        look_up(name)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('names', nargs='+', help='names or addresses')
    options.add_argument('--timeout', type=float, default=5, help='seconds for each look-up (default 5)')
    args = options.parse_args()
    reactor.run(lambda r: main(r, args.names, args.timeout))
