"""gpusched: which autoscaler should run a GPU inference service, shown with statistics a reviewer accepts."""

__version__ = "0.1.0"
