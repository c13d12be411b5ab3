"""Pictures of the dashboards for the documentation: `python -m tests.previews`.

An approximation: Grafana's own panels exist only inside Grafana. Queries, units, mappings, colours,
thresholds, layout and texts are read from the dashboards' files; how a panel is drawn is ours.
"""
