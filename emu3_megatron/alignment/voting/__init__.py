"""The voting page: samples of a prompt side by side, served on this machine alone."""
