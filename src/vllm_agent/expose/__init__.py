"""What others read of the agent: metrics, API and page, all from one snapshot."""
