"""Every bound of the store, with its reason."""

from __future__ import annotations

from typing import Final

CALL_DEADLINE_SECONDS: Final = 2.0
"""How long one call to the disk may take: a commit takes 1 ms, a checkpoint's fsync up to 1 s."""

BUSY_TIMEOUT_SECONDS: Final = 0.5
"""How long SQLite waits for another program's lock; well below the deadline of a call."""

RETRY_SECONDS: Final = 30.0
"""How often a store that is down tries again; a try costs a few system calls."""

PRUNE_INTERVAL_SECONDS: Final = 3600.0
"""How often rows that grew too old are looked for."""

MAX_PRUNED_TRANSITIONS: Final = 20_000
"""Old rows removed at a time, 0.1 s: an agent that was away for weeks finds 300,000, 2 s."""

MAX_PRUNED_SERVERS: Final = 100
"""Gone servers removed at a time, with up to 1,100 rows each, for the same reason."""

PRUNE_AFTER_ROWS: Final = 1000
"""Rows written after which bounds are enforced: each row pays 1/1000 of a scan of 0.5 s at most."""

RETENTION_SECONDS: Final = 7 * 86400.0
"""Age at which history may go: a week shows what a weekend did. At least a day is promised."""

KEPT_LAUNCHES: Final = 10
"""The newest launches of a server that stay, with their transitions, whatever their age."""

MAX_LAUNCHES: Final = 100
"""Launches per server: a crash loop at one launch a minute fills them in under two hours."""

MAX_TRANSITIONS: Final = 1000
"""Transitions per server: about ten for each launch that is kept."""

MAX_SERVERS: Final = 4000
"""Names in the file and in memory: four times the largest configuration that is tested, because
a local user can invent names."""

MAX_TEXT_BYTES: Final = 4096
"""Bytes of one detail, or of the evidence of one ending: a traceback's last lines fit."""

MAX_HOLDER_BYTES: Final = 1024
"""Bytes of who held what a launch needed: the names and PIDs of some processes fit."""

MAX_LOG_BYTES: Final = 8192
"""Bytes of the log lines of one ending: 40 lines of a traceback are 3 to 6 kB."""

KEPT_LOGS: Final = 10
"""The newest endings of a server that keep their log lines, as many as launches stay whatever their
age: in a crash loop they all say the same."""

MAX_LOGS: Final = 1000
"""Endings of all servers that keep their log lines: at most 9 MB of the file, whoever invents
names."""

MAX_UNWRITTEN_ROWS: Final = 10_000
"""Rows kept in memory while the disk is down: about 5 MB, at most 50 MB with the longest texts."""

MAX_UNWRITTEN_LOGS: Final = 100
"""Of those, the endings that keep their log lines: at most 1 MB."""

MAX_FILE_BYTES: Final = 128 * 2**20
"""Size of the database file, enforced by SQLite itself. The write-ahead log comes on top: 4 MiB, or
the largest single transaction (45 MB, after an outage that filled memory) until the next commit."""

SHRINK_ABOVE_BYTES: Final = 96 * 2**20
"""Content above which the oldest history goes: a quarter of the file stays free for one burst."""

WAL_BYTES: Final = 4 * 2**20
"""Size to which the write-ahead log is cut: SQLite checkpoints it at 1,000 pages."""

VACUUM_PAGES: Final = 1024
"""Free pages given back per pruning: 4 MiB, a few milliseconds."""

MAX_CORRUPT_FILES: Final = 3
"""Damaged databases kept for a look; with them a state directory stays under 600 MiB."""

MAX_HISTORY_ROWS: Final = 1000
"""Rows one question for history may get."""

MAX_UNKNOWN_VALUES: Final = 100
"""Distinct unknown values that are counted: a file can hold any number."""
