"""The SVDQuant int4 checkpoint format, read and written."""
