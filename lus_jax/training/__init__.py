"""The engine that every task trains by; it knows no task."""
