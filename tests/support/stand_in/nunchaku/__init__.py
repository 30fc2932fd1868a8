"""A stand-in for Nunchaku's engine: the class surface of its release 1.2.1, computing densely on any device."""
