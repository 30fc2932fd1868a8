"""HTTP as a door: RunPod's API, OpenAI's, bytes, and a page."""
