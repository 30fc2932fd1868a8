"""Weights: fetched, verified, made. The server's packages do not import it."""
