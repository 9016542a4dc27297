"""How a policy learns: environments, networks, PPO, validation, convergence verdict. The home of torch."""
