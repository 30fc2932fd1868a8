"""How the demo model was trained. In neither the wheel nor the image."""
