"""Telemetry: the core states facts as events; what counts, logs or exposes them lives here."""
