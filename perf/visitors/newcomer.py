"""The way of a newcomer: everything that the README tells to type, in a bare Debian with nothing but Python.

    sudo python -m perf.visitors.newcomer                  all of it, some ten minutes, most of them for the tests
    sudo python -m perf.visitors.newcomer --only demo,echo

It needs root, `debootstrap`, and a network. The rule: commands and programs are taken out of the README as they stand
there, and nothing is installed but what the README says. The Debian is made once, in --folder, and copied for each run;
the project in it is a clone of what is committed here.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
README = (CHECKOUT / 'README.md').read_text()
BLOCKS = re.findall(r'^```(\w*)\n(.*?)^```$', README, re.MULTILINE | re.DOTALL)
SYSTEM = 'debootstrap --variant=minbase --include=python3 bookworm {} http://deb.debian.org/debian'
HOSTS = '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n'  # which every installer writes, and debootstrap does not
ENTER = 'mount -t proc proc {0}/proc && mount --bind /dev {0}/dev && exec chroot {0} /usr/bin/env -i {1} bash -c "$0"'
ENVIRONMENT = 'HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8'
VENV = 'apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv'
FETCH = 'python3 -c "import urllib.request as u; print(u.urlopen(\'{}\').read().decode())"'


class Debian:
    """A folder with a Debian in it; `run` is what somebody types there, in the checkout."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def start(self, command: str) -> subprocess.Popen[str]:
        """Type it, and do not wait; ended by `end`."""
        inside = ['bash', '-c', ENTER.format(self.root, ENVIRONMENT), f'cd ~/reactor; {command}']
        return subprocess.Popen(
            ['unshare', '--mount', '--pid', '--fork', '--kill-child', *inside],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, command: str, seconds: float = 120) -> str:
        """Type it and wait; what it said. SystemExit when it fails."""
        print(f'    $ {command.strip()}', flush=True)
        process = self.start(command)
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            sys.exit(f'not done after {seconds} s: {command}\n{end(process)}')
        if process.returncode:
            sys.exit(f'status {process.returncode}: {command}\n{said}')
        return said


def end(process: subprocess.Popen[str]) -> str:
    """End what was started, and all that it has started; what it said."""
    os.killpg(process.pid, signal.SIGKILL)  # with --kill-child, everything inside goes
    return process.communicate()[0]


def block(*words: str) -> str:
    """The one block of the README that has all of these words."""
    (found,) = [code for _, code in BLOCKS if all(word in code for word in words)]
    return found


def until(debian: Debian, command: str, wanted: str, seconds: float = 30) -> None:
    """Type it again and again until it says what is wanted."""
    deadline = time.monotonic() + seconds
    while True:
        process = debian.start(command)
        said, _ = process.communicate(timeout=30)
        if wanted in said:
            return
        if time.monotonic() > deadline:
            sys.exit(f'not within {seconds} s: {wanted!r} of {command}; it says\n{said}')
        time.sleep(0.2)


def demo(debian: Debian) -> None:
    """The experiment, and its page while it runs."""
    (command,) = block('reactor.demo').strip().splitlines()
    process = debian.start(command)
    if '--dashboard' in command:
        until(debian, FETCH.format('http://127.0.0.1:9010/'), '<title>')
        print('    the page is there', flush=True)
    said, _ = process.communicate(timeout=300)
    if process.returncode or 'errors         0' not in said:
        sys.exit(said)
    print(*said.splitlines()[-10:], sep='\n')


def echo(debian: Debian) -> None:
    """An echo server, typed in and talked to."""
    (debian.root / 'root/reactor/echo.py').write_text(block('7007'))
    process = debian.start('python3 echo.py')
    talk = re.search(r'`(python3 -c "import socket; .*?")`', README.replace('\n', ' '))
    ask = 'import socket; s = socket.create_connection(("127.0.0.1", 7007)); s.send(b"hi"); print(s.recv(9))'
    until(debian, talk[1] if talk else f"python3 -c '{ask}'", "b'hi'")
    end(process)


def workers(debian: Debian) -> None:
    """An echo server on all processors, and its end."""
    (debian.root / 'root/reactor/server.py').write_text(block('serve.run'))
    process = debian.start('python3 server.py')
    ask = 'import socket; s = socket.create_connection(("127.0.0.1", 7008)); s.send(b"hi"); print(s.recv(9))'
    until(debian, f"python3 -c '{ask}'", "b'hi'")
    end(process)


def tests(debian: Debian) -> None:
    """The tests, with what the README says they need."""
    debian.run(VENV, 300)
    print(*debian.run(block('pytest', 'venv'), 1800).splitlines()[-40:], sep='\n')


def profile(debian: Debian) -> None:
    """A profile, in the environment of the tests."""
    debian.run(VENV, 300)
    debian.run("test -d .venv || python3 -m venv .venv; .venv/bin/pip install -q -e '.[perf]'", 300)
    print(*debian.run(block('profile.sh'), 120).splitlines()[-3:], sep='\n')


def haproxy(debian: Debian) -> None:
    """HAProxy in front of two workers."""
    install, rest = block('apt-get', 'haproxy').split('\n', 1)
    debian.run(f'apt-get update -qq; {install.replace("install", "install -y -qq --no-install-recommends")}', 300)
    process = debian.start(rest)
    until(debian, FETCH.format('http://127.0.0.1:8000/'), '200 OK')
    end(process)


STEPS = {step.__name__: step for step in (demo, echo, workers, tests, profile, haproxy)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--only', default=','.join(STEPS), help=f'of {", ".join(STEPS)}')
    parser.add_argument('--folder', type=Path, default=Path('/var/tmp/newcomer'), help='where the Debian is kept')
    args = parser.parse_args()
    if os.geteuid() or not shutil.which('debootstrap'):
        parser.error('this needs root, and: apt-get install debootstrap')
    if not (args.folder / 'root').exists():
        subprocess.run(SYSTEM.format(args.folder).split(), check=True, stdout=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory(dir=args.folder.parent) as copy:
        debian = Debian(Path(copy) / 'debian')
        subprocess.run(['cp', '-a', args.folder, debian.root], check=True)
        (debian.root / 'etc/hosts').write_text(HOSTS)
        shutil.copy('/etc/resolv.conf', debian.root / 'etc/resolv.conf')
        if 'PIP_CERT' in os.environ:  # of a network that has an authority of its own
            shutil.copy(os.environ['PIP_CERT'], debian.root / 'etc/authority.pem')
            (debian.root / 'etc/pip.conf').write_text('[global]\ncert = /etc/authority.pem\n')
        subprocess.run(['git', 'clone', '-q', CHECKOUT, debian.root / 'root/reactor'], check=True)
        for name in args.only.split(','):
            began = time.monotonic()
            print(f'{name}: {STEPS[name].__doc__}', flush=True)
            STEPS[name](debian)
            print(f'{name}: done in {time.monotonic() - began:.0f} s\n', flush=True)


if __name__ == '__main__':
    main()
