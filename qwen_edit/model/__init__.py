"""The network, in the order of a step."""
