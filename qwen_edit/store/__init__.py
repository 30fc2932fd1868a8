"""The model directory: the interface between builder and server. No torch."""
