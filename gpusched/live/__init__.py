"""What real clusters share: Locust users, Prometheus telemetry, wall clock."""
