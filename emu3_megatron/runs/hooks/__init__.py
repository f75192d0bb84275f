"""The hooks of every run: logging, guard, validation, saving."""
