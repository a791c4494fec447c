"""Measure trained models: likelihood, accuracy and cost, each with its kind and tolerance."""
