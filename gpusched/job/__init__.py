"""What `run.py` can be asked to do, and how a configuration becomes typed objects."""
