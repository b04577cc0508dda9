"""The workloads by name, in the order in which they are measured and reported."""

from .delayed import Seed
from .held import Idle, Pending, SecureIdle
from .loops import LOOPS
from .requests import REQUEST_WORKLOADS
from .volume import Broadcast, Large, Pump

ALL = (
    *REQUEST_WORKLOADS, Seed('seed1k', 1_000), Seed('seed10k', 10_000), Idle(), SecureIdle(), Pending(), Large(),
    Pump(), Broadcast(), *LOOPS,
)  # fmt: skip

WORKLOADS = {workload.name: workload for workload in ALL}
