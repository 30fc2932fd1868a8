"""Models that are made here: tiny and demo."""
