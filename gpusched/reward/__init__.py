"""Rewards: one file per option; the training signal, never a KPI."""
