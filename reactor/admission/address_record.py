"""The record that a `Limits` object keeps of one client address: its open connections and its remaining tokens.

Rates are limited by token buckets. A bucket begins with `burst` tokens, each worth one connection or one request, and
is refilled at a steady rate, up to `burst`.
"""

from __future__ import annotations

Rate = tuple[float, float]  # tokens per second, and the burst


class AddressRecord:
    """The record of one address, or of a whole /64 for IPv6."""

    __slots__ = ('connects', 'key', 'open', 'requests', 'seen')

    def __init__(self, key: bytes, connect_rate: Rate | None, request_rate: Rate | None, now: float) -> None:
        self.key: bytes = key  # the bytes of the address, empty for clients without one
        self.open: int = 0  # open connections
        self.seen: float = now
        self.connects: TokenBucket = TokenBucket(now, connect_rate)
        self.requests: TokenBucket = TokenBucket(now, request_rate)


class TokenBucket:
    """A token bucket for one address. The caller passes the rate, so that a bucket stays small."""

    __slots__ = ('_at', '_left')

    def __init__(self, now: float, rate: Rate | None) -> None:
        self._at = now
        self._left = 0.0 if rate is None else rate[1]

    def take(self, now: float, rate: Rate) -> bool:
        """Take one token and return True, or return False if there is none."""
        self._left = min(rate[1], self._left + (now - self._at) * rate[0])
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
