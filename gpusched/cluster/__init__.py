"""Where replicas run: thin adapters behind one port."""
