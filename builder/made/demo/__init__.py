"""A small trained model in the production format, which follows a handful of instructions."""
