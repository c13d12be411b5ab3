"""Grafana dashboards as code: `python -m dashboards` writes `dashboards/grafana/*.json`."""
