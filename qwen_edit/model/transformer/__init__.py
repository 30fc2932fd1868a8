"""The transformer, in each of its backends."""
