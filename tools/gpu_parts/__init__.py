"""What `make gpu` runs on a machine with a GPU, in parts of under nine minutes each."""
