"""Jobs that a door keeps: submitted, waited for, watched, stopped, and their results kept for a while."""
