"""Many downloads at once with libcurl: its multi interface, by pycurl, waits for sockets and timers in the reactor.

$ pip install pycurl
$ PYTHONPATH=. python3 examples/recipes/curl_multi.py http://127.0.0.1:8000/ http://127.0.0.1:8001/
http://127.0.0.1:8001/: Failed to connect to 127.0.0.1 port 8001 after 0 ms: Could not connect to server (curl: 7)
http://127.0.0.1:8000/: 200, 612 bytes
"""

import sys
from functools import partial
from io import BytesIO

import pycurl

import reactor
from reactor import READ, WRITE

EVENTS = {pycurl.POLL_NONE: 0, pycurl.POLL_IN: READ, pycurl.POLL_OUT: WRITE, pycurl.POLL_INOUT: READ | WRITE}
FLAGS = {READ: pycurl.CSELECT_IN, WRITE: pycurl.CSELECT_OUT}


class DownloadError(Exception):
    """A download has failed. `code` is libcurl's number of the error, such as `pycurl.E_OPERATION_TIMEDOUT`."""

    def __init__(self, url, code, text):
        super().__init__(f'{url}: {text} (curl: {code})')
        self.code = code


class Downloads:
    """Downloads that share a pool of at most `most` connections; further ones wait inside libcurl."""

    def __init__(self, r, most=100):
        self.r = r
        self.watches = {}  # by descriptor
        self.timer = None
        self.transfers = {}  # each transfer, with the function to call at its end
        self.multi = pycurl.CurlMulti()
        self.multi.setopt(pycurl.M_SOCKETFUNCTION, self.watch)
        self.multi.setopt(pycurl.M_TIMERFUNCTION, self.set_timer)
        self.multi.setopt(pycurl.M_MAX_TOTAL_CONNECTIONS, most)

    def get(self, url, on_done, write=None, timeout=60):
        """Download something.

        Args:
            on_done: `on_done(status, body, error)`, called once; `error` is None or a `DownloadError`.
            write: Called with each piece of the body, which is then not kept. It must not start or close downloads.
            timeout: Seconds for everything, the wait for a connection included.

        Returns:
            The transfer, for `cancel`. It has all options of libcurl: `transfer.setopt(pycurl.USERPWD, 'me:secret')`.
        """
        body, transfer = BytesIO(), pycurl.Curl()
        transfer.setopt(pycurl.URL, url)
        transfer.setopt(pycurl.NOSIGNAL, 1)  # signals belong to the reactor
        transfer.setopt(pycurl.FOLLOWLOCATION, 1)
        transfer.setopt(pycurl.TIMEOUT_MS, int(1000 * timeout))
        transfer.setopt(pycurl.WRITEFUNCTION, write or body.write)
        self.transfers[transfer] = partial(self.done, transfer, url, body, on_done)
        self.multi.add_handle(transfer)  # libcurl sets its timer to 0, so it begins in the next turn
        return transfer

    def cancel(self, transfer):
        """End a download without calling its `on_done`. Does nothing if it has ended."""
        if self.transfers.pop(transfer, None) is not None:
            self.multi.remove_handle(transfer)
            transfer.close()

    def close(self):
        """End all downloads, and close all connections."""
        for transfer in list(self.transfers):
            self.cancel(transfer)
        self.set_timer(-1)
        for fd in list(self.watches):
            self.watches.pop(fd).close()
        self.multi.close()

    # -- called by libcurl, which must not be called back in these functions

    def watch(self, what, fd, multi, data):
        if what == pycurl.POLL_REMOVE:  # libcurl closes the descriptor after this
            if fd in self.watches:
                self.watches.pop(fd).close()
        elif fd in self.watches:
            self.watches[fd].set_events(EVENTS[what])
        else:
            self.watches[fd] = self.r.watch_fd(fd, EVENTS[what], self.ready)

    def set_timer(self, milliseconds):
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if milliseconds >= 0:
            self.timer = self.r.call_later(milliseconds / 1000, self.time_out)

    # -- called by the reactor

    def ready(self, watch, event):
        self.act(watch.fileno(), FLAGS[event])

    def time_out(self):
        self.timer = None
        self.act(pycurl.SOCKET_TIMEOUT, 0)

    def act(self, fd, flags):
        """Let libcurl do what is possible now, and call `on_done` for each download that has ended."""
        self.multi.socket_action(fd, flags)
        waiting = True
        while waiting:
            waiting, finished, failed = self.multi.info_read()
            for transfer in finished:
                self.end(transfer, 0, '')
            for transfer, code, text in failed:
                self.end(transfer, code, text)

    def end(self, transfer, code, text):
        self.multi.remove_handle(transfer)
        self.r.call_soon(self.transfers.pop(transfer), code, text)  # an exception there must not end our watch

    def done(self, transfer, url, body, on_done, code, text):
        status = transfer.getinfo(pycurl.RESPONSE_CODE)
        transfer.close()
        on_done(status, body.getvalue(), DownloadError(url, code, text) if code else None)


def main(r):
    def on_done(url, status, body, error):
        print(f'{url}: {status}, {len(body)} bytes' if error is None else error, flush=True)

    downloads = Downloads(r)
    for url in sys.argv[1:]:
        downloads.get(url, partial(on_done, url))


if __name__ == '__main__':
    try:
        reactor.run(main)
    except KeyboardInterrupt:
        print('bye')
