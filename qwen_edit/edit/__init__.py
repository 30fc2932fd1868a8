"""All of an edit that needs no model. No torch."""
