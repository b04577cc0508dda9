"""The workloads by name, in the order in which they are measured and reported."""

from .delayed import Seed
from .held import Idle, Pending, SecureIdle
from .loops import LOOPS
from .requests import Churn, DeferredChurn, KeepAlive, Secure
from .volume import Broadcast, Large, Pump

ALL = (
    KeepAlive(), Churn(), DeferredChurn(), Secure(), Seed('seed1k', 1_000), Seed('seed10k', 10_000), Idle(),
    SecureIdle(), Pending(), Large(), Pump(), Broadcast(), *LOOPS,
)  # fmt: skip

WORKLOADS = {workload.name: workload for workload in ALL}
