"""What is here, and what fits it. torch in `device` alone."""
