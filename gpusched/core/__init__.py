"""The vocabulary every room shares: types, ports, KPIs, seeds and errors. Depends on numpy only."""
