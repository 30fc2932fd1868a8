"""Bytes ⇄ pictures. No torch."""
