"""How the libraries are imported."""
