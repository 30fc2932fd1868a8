"""Proves that a model directory is whole."""
