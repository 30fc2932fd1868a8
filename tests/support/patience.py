"""How long tests wait for an event that has to come."""

PATIENCE = 120.0
"""Seconds, far more than a busy machine needs: it only ends a test that hangs."""
