"""The history of servers on disk: counters, launches, endings and transitions in SQLite.

Only this package imports sqlite3. It survives every fault of its disk, and never delays its caller
by more than a deadline.
"""

from vllm_agent.store.directory import StateDirectoryInUse
from vllm_agent.store.records import History, LaunchRecord, StoreStatus
from vllm_agent.store.store import Store

__all__ = ["History", "LaunchRecord", "StateDirectoryInUse", "Store", "StoreStatus"]
