"""What the four services share: server, jobs, events, artifacts, settings, telemetry."""
