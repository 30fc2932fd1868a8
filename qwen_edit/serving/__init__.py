"""How jobs come and go."""
