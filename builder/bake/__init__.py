"""Fetches weights. What the image layers below the weights import is this folder, and two files of `store`."""
