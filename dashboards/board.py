"""What all dashboards share: the frame, the variables and the links between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dashboards.links import GPU_UID, SERVER_UID
from dashboards.panels import DATASOURCE, Json, link
from dashboards.queries import label_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashboards.panels import Threshold

SCHEMA_VERSION: Final = 39
"""That of vLLM's own dashboards, which are tested with Grafana 10.4, 11.6 and 13.2."""
OWN_TAG: Final = "vllm-agent"
SERVER_NAME: Final = "{{server}} ({{instance}})"
"""The legend of a server: its name is unique on its host only."""
GOOD_WHEN_ZERO: Final[Sequence[Threshold]] = ((None, "green"), (1.0, "red"))
BAR_INTERVAL: Final = "5m"
"""Bars count events per interval; narrower ones would be shorter than a scrape can resolve."""
ALL: Final[Json] = {"text": ["All"], "value": ["$__all"]}
_ANNOTATION_STEP: Final = "1m"
"""Marks that are nearer to each other than this become one."""
_FOLDER: Final = Path(__file__).parent / "grafana"


def path_of(uid: str) -> Path:
    """Where the dashboard's file is."""
    return _FOLDER / f"{uid}.json"


def file_text(dashboard: Json) -> str:
    """The dashboard's file: the same text for the same dashboard, everywhere."""
    return json.dumps(dashboard, indent=2) + "\n"


def board(
    uid: str,
    title: str,
    description: str,
    panels: Sequence[Json],
    *,
    variables: Sequence[Json] = (),
    annotations: Sequence[Json] = (),
) -> Json:
    """A dashboard in Grafana's classic JSON model; `variables` follow those that all have."""
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["vllm", "vllm-agent"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "timezone": "browser",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [*_variables(), *variables]},
        "annotations": {"list": list(annotations)},
        "links": [
            _link(OWN_TAG, OWN_TAG, is_dropdown=False),
            _link("vllm", "All vLLM dashboards", is_dropdown=True),
            _vllm_link("vLLM's overview", "vllm-overview"),
            _vllm_link("vLLM's instances", "vllm-instances"),
        ],
        "panels": list(panels),
    }


def query_variable(name: str, label: str, query: str, *, all_value: str | None) -> Json:
    """A multi-value variable filled from label values; starts with everything selected."""
    variable: Json = {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": f"variable-{name}"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "current": ALL,
        "hide": 0,
        "regex": "",
        "options": [],
        "skipUrlSync": False,
    }
    return variable if all_value is None else variable | {"allValue": all_value}


def annotation(name: str, expr: str, color: str, text: str) -> Json:
    """Marks over all graphs, one where the query has a series with a value above 0."""
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": color,
        "expr": expr,
        "step": _ANNOTATION_STEP,
        "titleFormat": text,
        "textFormat": "{{instance}}",
        "tagKeys": "server",
    }


def to_server(instance: str, server: str) -> Json:
    """A link to the Server dashboard; the arguments are Grafana's names of the clicked values."""
    return _to_board("Open the server", SERVER_UID, instance=instance, server=server)


def to_gpu(instance: str, gpu: str) -> Json:
    """A link to the GPU dashboard; the arguments are Grafana's names of the clicked values."""
    return _to_board("Open the GPU", GPU_UID, instance=instance, gpu=gpu)


def _to_board(title: str, uid: str, **chosen: str) -> Json:
    selection = "".join(f"&var-{name}=${{{value}}}" for name, value in chosen.items())
    kept = "${datasource:queryparam}&${job:queryparam}"
    return link(title, f"/d/{uid}?{kept}{selection}&${{__url_time_range}}")


def _variables() -> list[Json]:
    # A server whose model is not known yet has an empty model_name; ".*" keeps it, ".+" would not.
    # `server` has no such pattern: its "All" has to be the servers of the chosen models.
    return [
        _datasource_variable(),
        query_variable("job", "Job", label_values("build_info", "job"), all_value=".+"),
        query_variable(
            "model_name",
            "Model",
            label_values("server_info", "model_name", "job"),
            all_value=".*",
        ),
        query_variable(
            "instance", "Instance", label_values("build_info", "instance", "job"), all_value=".+"
        ),
        query_variable(
            "server",
            "Server",
            label_values("server_info", "server", "job", "instance", "model_name"),
            all_value=None,
        ),
    ]


def _datasource_variable() -> Json:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "multi": False,
        "includeAll": False,
        "current": {},
        "hide": 0,
        "regex": "",
        "options": [],
        "skipUrlSync": False,
    }


def _link(tag: str, title: str, *, is_dropdown: bool) -> Json:
    """A link to every dashboard with the tag.

    Our own take the variables along. To others `job` and `instance` are those of vLLM itself, and
    an agent's would show nothing there.
    """
    return {
        "type": "dashboards",
        "title": title,
        "tags": [tag],
        "asDropdown": is_dropdown,
        "includeVars": tag == OWN_TAG,
        "keepTime": True,
    }


def _vllm_link(title: str, uid: str) -> Json:
    """A link to a dashboard of vLLM itself, with the variables that they share."""
    return {
        "type": "link",
        "title": title,
        "tooltip": "A dashboard that vLLM ships, where it is installed.",
        "icon": "dashboard",
        "url": f"/d/{uid}?${{datasource:queryparam}}&${{model_name:queryparam}}",
        "includeVars": False,
        "keepTime": True,
        "targetBlank": False,
    }
