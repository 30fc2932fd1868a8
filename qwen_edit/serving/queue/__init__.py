"""RunPod's queue as a door: jobs taken, answered and delivered."""
