"""Inputs and outputs that do not lie in a folder of this machine: object stores and tars."""
