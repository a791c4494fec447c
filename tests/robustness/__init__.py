"""Runs that are killed, damaged, out of disk space, or very long."""
