"""What a run leaves behind: an MLflow store, opened safely and written by many processes at once."""
