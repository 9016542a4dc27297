"""Loads: one file per option; each draws its users or arrivals before a trial starts."""
