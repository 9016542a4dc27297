"""Policies: one file per option; what is observed, turned into what to set."""
