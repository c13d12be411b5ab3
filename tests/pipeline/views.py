"""Viewers of the dashboards: what they have chosen, and what they rightly find.

Everything that is empty is named here, so that nothing is empty by accident.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from dashboards.links import FLEET_UID, GPU_UID, SERVER_UID
from tests.pipeline import story
from tests.pipeline.grafana import Window

if TYPE_CHECKING:
    from collections.abc import Mapping

WINDOW: Final = Window(story.START, story.END, story.STEP_SECONDS)
"""What all of them look at: the whole story."""

SERVERS: Final = (
    *("embed@8001", "gemma", "llama", "mistral", "partner"),
    *("phi", "planned", "qwen", "remote"),
)

EVERYTHING: Final = "everything"

CHOSEN: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        EVERYTHING: {},
        "a job": {"job": "vllm-agent"},
        "a model": {"model_name": story.LLAMA.name},
        "an instance": {"instance": "gpu2:10060"},
        "a server": {"server": "llama"},
        "a gpu": {"gpu": "2"},
        "one of each": {
            "job": "vllm-agent",
            "model_name": story.QWEN.name,
            "instance": "gpu1:10060",
            "server": "qwen",
            "gpu": "4",
        },
        "a server by URL": {"instance": "edge:10060", "server": "remote"},
        "an ad-hoc server": {"server": "embed@8001", "model_name": story.EMBED.name},
    }
)
"""What is chosen in each view; a variable that is not named is on All. Dots are in names of models,
so that a choice has to be escaped."""

_NO_START: Final = "No starts in this range"

NO_VALUE: Final[Mapping[str, Mapping[str, Mapping[int, str]]]] = MappingProxyType(
    {
        "a model": {FLEET_UID: {12: "Nothing loads"}},
        "an instance": {
            FLEET_UID: {12: "Nothing loads", 23: "No failures", 32: "Nothing left out"},
            SERVER_UID: {30: "No failures"},
            GPU_UID: {11: "No orphans"},
        },
        "a server": {
            FLEET_UID: {12: "Nothing loads", 23: "No failures"},
            SERVER_UID: {30: "No failures"},
        },
        "a gpu": {GPU_UID: {40: "No XIDs", 41: "No errors"}},
        "one of each": {
            FLEET_UID: {20: "No crashes", 22: "No crashes", 23: "No failures"},
            SERVER_UID: {30: "No failures", 43: "No crashes"},
            GPU_UID: {11: "No orphans", 40: "No XIDs", 41: "No errors"},
        },
        # Of what answers by URL no load and no process is seen, and its agent has no GPU.
        "a server by URL": {
            FLEET_UID: {
                12: "Nothing loads",
                20: "No crashes",
                21: "No restarts",
                22: "No crashes",
                32: "Nothing left out",
            },
            SERVER_UID: {
                20: _NO_START,
                21: "No starts seen",
                22: _NO_START,
                23: _NO_START,
                40: "No crashes, no restarts",
                43: "No crashes",
                50: "On no GPU",
                51: "No processes seen",
                52: "On no GPU",
                53: "No components seen",
                54: "No processes seen",
                55: "No processes seen",
            },
            GPU_UID: {
                **dict.fromkeys((1, 2, 3, 4, 5, 6, 10, 12), "No GPUs"),
                11: "No orphans",
                **dict.fromkeys((20, 21, 30), "No GPUs, or not supported"),
                40: "No XIDs",
                41: "No errors",
                50: "No server on a GPU",
            },
        },
        # Nobody wants it up, and it was there before its agent.
        "an ad-hoc server": {
            FLEET_UID: {
                1: "None",
                5: "Nothing desired",
                12: "Nothing loads",
                20: "No crashes",
                21: "No restarts",
                22: "No crashes",
                23: "No failures",
                24: "Nothing desired",
            },
            SERVER_UID: {
                20: _NO_START,
                21: "No starts seen",
                22: _NO_START,
                23: _NO_START,
                30: "No failures",
                40: "No crashes, no restarts",
                42: "Nothing desired",
                43: "No crashes",
            },
        },
    }
)
"""By view and dashboard: the panels that have nothing to show, and what a viewer reads there."""

ABSENT: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        EVERYTHING: {SERVER_UID: "1D 1E 21B"},
        "a job": {SERVER_UID: "1D 1E 21B"},
        "a gpu": {SERVER_UID: "1D 1E 21B"},
        "a model": {SERVER_UID: "1D 1E 20B 21B 21H 22B 22C 41C"},
        "an instance": {FLEET_UID: "31E", SERVER_UID: "1D 1E 20B 21B 21H 22B 22C 41C"},
        "a server": {SERVER_UID: "1D 1E 20B 21B 21H 22B 22C 41C"},
        "one of each": {SERVER_UID: "1D 1E 1F 21B 21D 21E 40A 41C"},
        "a server by URL": {FLEET_UID: "31E", SERVER_UID: "1D 1E 2C 41C"},
        "an ad-hoc server": {SERVER_UID: "1B 1D 1E 2C 41C"},
    }
)
"""By view and dashboard: queries (panel and letter) that find nothing beside others that do."""

EARLIER: Final[Mapping[str, Mapping[str, int]]] = MappingProxyType(
    {SERVER_UID: {"1D": story.at(84), "1E": story.at(78.5), "21B": story.at(30)}}
)
"""When the queries found something that find nothing at the end, with everything selected."""

SERIES: Final[Mapping[str, Mapping[int, tuple[int, ...]]]] = MappingProxyType(
    {
        FLEET_UID: {
            **dict.fromkeys((2, 3, 4, 5, 6), (1,)),
            1: (1, 1),
            10: (9,),
            11: (9,),
            12: (1, 1, 1, 1, 1),
            20: (4,),
            21: (4,),
            22: (4,),
            23: (3,),
            24: (8, 8),
            30: (17,),  # six collectors of each agent, but five of the one without a GPU
            31: (3, 3, 3, 3, 1),
            32: (2,),
            33: (17,),
        },
        SERVER_UID: {
            1: (9, 8, 9, 0, 0, 5),
            2: (9, 6, 5),
            10: (9,),
            20: (4, 1, 4, 3, 3),
            21: (4, 0, 4, 2, 2, 4, 4, 1),
            22: (5, 1, 1, 4, 4),
            23: (4,),
            30: (3, 3),
            31: (9, 9),
            32: (27,),  # three kinds of each server
            40: (4, 4),
            41: (9, 9, 1),
            42: (8,),
            43: (4, 4),
            50: (11,),
            51: (6, 6, 6),
            52: (11,),
            53: (20,),
            54: (6,),
            55: (6, 6),
        },
        GPU_UID: {
            **dict.fromkeys((1, 2, 3, 4, 5, 6), (1,)),
            10: (6, 1, 1, 1, 1),
            11: (2, 2),
            12: (12, 12, 12, 12, 12, 12),
            20: (12,),
            21: (12,),
            30: (12, 12),
            40: (2, 2),
            41: (2,),
            50: (9, 9),
        },
    }
)
"""By dashboard and panel: how many series each query finds, with everything selected."""

ROWS: Final[Mapping[str, Mapping[int, int]]] = MappingProxyType(
    {
        FLEET_UID: {11: 9, 12: 1, 22: 4, 24: 8, 31: 3},
        SERVER_UID: {1: 9, 2: 9, 21: 4, 43: 4},
        GPU_UID: {12: 12, 40: 2, 50: 9},
    }
)
"""By dashboard and table: its rows, with everything selected."""
