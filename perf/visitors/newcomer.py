"""Try what a newcomer does: run what the README and two pages say to type, in a bare Debian with only Python.

    sudo python -m perf.visitors.newcomer                  everything: about ten minutes, mostly for the tests
    sudo python -m perf.visitors.newcomer --only demo,echo

This needs root, `debootstrap` and a network. Commands and programs are read from the README, and only packages that the
README names are installed. The Debian is created once, in --folder, and copied for each run; the project in the copy is
a clone of the commit that is checked out here.
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
PAGES = ('README.md', 'docs/operations/workers.md', 'docs/operations/load-balancers.md')
TEXT = '\n'.join((CHECKOUT / page).read_text() for page in PAGES)
BLOCKS = re.findall(r'^```(\w*)\n(.*?)^```$', TEXT, re.MULTILINE | re.DOTALL)
SYSTEM = 'debootstrap --variant=minbase --include=python3 bookworm {} http://deb.debian.org/debian'
HOSTS = '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n'  # debootstrap, unlike an installer, does not write this
ENTER = 'mount -t proc proc {0}/proc && mount --bind /dev {0}/dev && exec chroot {0} /usr/bin/env -i {1} bash -c "$0"'
ENVIRONMENT = 'HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8'
VENV = 'apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv'
FETCH = 'python3 -c "import urllib.request as u; print(u.urlopen(\'{}\').read().decode())"'


class Debian:
    """A folder with a Debian in it; commands run inside, in the checkout."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start a command without waiting for its end; `end` ends it."""
        inside = ['bash', '-c', ENTER.format(self.root, ENVIRONMENT), f'cd ~/reactor; {command}']
        return subprocess.Popen(
            ['unshare', '--mount', '--pid', '--fork', '--kill-child', *inside],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, command: str, seconds: float = 120) -> str:
        """Run a command and return its output; exit this program if the command fails."""
        print(f'    $ {command.strip()}', flush=True)
        process = self.start(command)
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            sys.exit(f'still running after {seconds} s: {command}\n{end(process)}')
        if process.returncode:
            sys.exit(f'status {process.returncode}: {command}\n{output}')
        return output


def end(process: subprocess.Popen[str]) -> str:
    """Kill a command and everything it has started; return its output."""
    os.killpg(process.pid, signal.SIGKILL)  # because of --kill-child, this also ends everything inside
    return process.communicate()[0]


def block(*words: str) -> str:
    """Return the one code block of the pages that contains all of these words."""
    (found,) = [code for _, code in BLOCKS if all(word in code for word in words)]
    return found


def until(debian: Debian, command: str, wanted: str, seconds: float = 30) -> None:
    """Run a command repeatedly until its output contains `wanted`."""
    deadline = time.monotonic() + seconds
    while True:
        process = debian.start(command)
        output, _ = process.communicate(timeout=30)
        if wanted in output:
            return
        if time.monotonic() > deadline:
            sys.exit(f'no {wanted!r} from {command} within {seconds} s; its output is\n{output}')
        time.sleep(0.2)


def demo(debian: Debian) -> None:
    """Run the experiment, and open its page while it runs."""
    (command,) = block('reactor.demo').strip().splitlines()
    process = debian.start(f'timeout 300 {command}')
    if '--dashboard' in command:
        until(debian, FETCH.format('http://127.0.0.1:9010/'), '<title>')
        print('    the page is served', flush=True)
    lines = []
    for line in process.stdout or ():
        lines.append(line)
        if 'until Ctrl-C' in line:
            break
    lines.append(end(process))
    if 'errors         0\n' not in lines:
        sys.exit(''.join(lines))
    print(*lines[-11:], sep='')


def echo(debian: Debian) -> None:
    """Run the echo server, and the client."""
    (debian.root / 'root/reactor/echo.py').write_text(block('7007', 'listen_tcp'))
    (debian.root / 'root/reactor/hello.py').write_text(block('7007', 'connect_tcp'))
    process = debian.start('python3 echo.py')
    until(debian, 'python3 hello.py', "received b'hello'")
    end(process)


def workers(debian: Debian) -> None:
    """Run the echo server with workers, and send data to it."""
    (debian.root / 'root/reactor/server.py').write_text(block('serve.run'))
    process = debian.start('python3 server.py')
    ask = 'import socket; s = socket.create_connection(("127.0.0.1", 7008)); s.send(b"hi"); print(s.recv(9))'
    until(debian, f"python3 -c '{ask}'", "b'hi'")
    end(process)


def tests(debian: Debian) -> None:
    """Run the tests, with the packages that the README names for them."""
    debian.run(VENV, 300)
    print(*debian.run(block('pytest', 'venv'), 1800).splitlines()[-40:], sep='\n')


def profile(debian: Debian) -> None:
    """Take a profile, in the environment of the tests."""
    debian.run(VENV, 300)
    debian.run("test -d .venv || python3 -m venv .venv; .venv/bin/pip install -q -e '.[perf]'", 300)
    print(*debian.run(block('profile.sh'), 120).splitlines()[-3:], sep='\n')


def haproxy(debian: Debian) -> None:
    """Run two workers behind HAProxy."""
    install, rest = block('apt-get', 'haproxy').split('\n', 1)
    debian.run(f'apt-get update -qq; {install.replace("install", "install -y -qq --no-install-recommends")}', 300)
    process = debian.start(rest)
    until(debian, FETCH.format('http://127.0.0.1:8000/'), '200 OK')
    end(process)


STEPS = {step.__name__: step for step in (demo, echo, workers, tests, profile, haproxy)}


def main() -> None:
    parser = argparse.ArgumentParser('python -m perf.visitors.newcomer', description=__doc__.splitlines()[0])
    parser.add_argument('--only', default=','.join(STEPS), help=f'choose from {", ".join(STEPS)}')
    parser.add_argument(
        '--folder', type=Path, default=Path('/var/tmp/newcomer'), help='folder for the Debian, default %(default)s'
    )
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
        if 'PIP_CERT' in os.environ:  # this machine's network uses a private certificate authority
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
