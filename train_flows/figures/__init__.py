"""Figures: pure drawing, and the pictures of a run."""
