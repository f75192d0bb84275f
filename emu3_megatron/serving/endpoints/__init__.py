"""What each path does with a call."""
