"""Modules that wait in the host's memory and are on the device only while it is their turn."""
