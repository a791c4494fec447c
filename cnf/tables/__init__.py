"""Densities of tables whose columns are of several kinds."""
