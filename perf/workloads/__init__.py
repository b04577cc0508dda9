"""The workloads, by name, in the order in which they are measured and shown."""

from .delayed import Seed
from .held import Idle, Pending
from .loops import LOOPS
from .requests import Churn, DeferredChurn, KeepAlive
from .volume import Broadcast, Large, Pump

ALL = (
    KeepAlive(), Churn(), DeferredChurn(), Seed('seed1k', 1_000), Seed('seed10k', 10_000), Idle(), Pending(), Large(),
    Pump(), Broadcast(), *LOOPS,
)  # fmt: skip

WORKLOADS = {workload.name: workload for workload in ALL}
