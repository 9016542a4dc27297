"""Actions: one file per option; the levers a learning policy holds and what each choice means."""
