"""What goes wrong, one file per option; each is drawn before the trial and the same for every policy."""
