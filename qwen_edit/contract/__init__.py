"""JSON in, JSON out: the fields, their rules and their errors."""
