"""All cases, in the order in which they are measured and reported. Each is a class in another module of this folder."""

from .attack import Attack
from .behind_haproxy import Killed, Rolling
from .children import Children
from .churn import Churn
from .clocks import Jumps, Timers
from .collector import Collector
from .drill import Drill
from .ending import Ending
from .fairness import Firehose
from .held import AtTheLimit, Idle, TwoWorkers
from .interrupts import SignalFlood
from .kills import Kills
from .loris import SlowLoris
from .network.cases import NETWORK
from .serving import Crashes, Drains, Orphans, Quiet, Reloads
from .shared_port import SharedHaproxy, SharedNginx
from .shortage import Memory, SelectLimit
from .spins import Spins
from .tls_peers import Chat, Keys, MemoryAfterTransfer
from .unread import Unread

CASES = [
    Idle(),
    TwoWorkers(),
    AtTheLimit(),
    Churn(),
    Unread(),
    SlowLoris(),
    Firehose(),
    Timers(),
    SignalFlood(),
    *NETWORK,
    Kills(),
    Reloads(),
    Memory(),
    Jumps(),
    SelectLimit(),
    Children(),
    Collector(),
    Rolling(),
    Killed(),
    SharedHaproxy(),
    SharedNginx(),
    Drains(),
    Orphans(),
    Crashes(),
    Attack(),
    Ending(),
    Spins(),
    MemoryAfterTransfer(),
    Keys(),
    Chat(),
    Drill(),
    Quiet(),
]

BY_NAME = {case.name: case for case in CASES}
