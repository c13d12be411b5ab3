"""What is made of the agent's metrics: alerts, dashboards and deployments, on the real programs.

- `processes` runs Prometheus, Alertmanager and a webhook; `catalogue` is what the agent declares;
  `promql` and `result_labels` read expressions.
- Alerts: `test_alerts`, `test_alert_sites`, `test_alertmanager`, `test_runbooks`; the unit tests of
  the rules are in `alerts/tests/`.
- Live: `test_scenarios` has the table of what happens and who is told. `incidents` and `quiet_life`
  make it happen on a `stage` of agents and servers; `journal` and `outcomes` say what was told.
- Dashboards: `boards` are the files, `linter` and `grafana` treat them as Grafana's tools do.
  `story` and its parts play two hours of a fleet, `story_blocks` stores them, and `views` says what
  each viewer finds.
- Deployments: `compose`, `dockerfile`, `image`, `clean_root` and `wheelhouse` do what can be done
  without a container engine; `quiet_receivers` makes Compose's copy of the Alertmanager example.
"""
