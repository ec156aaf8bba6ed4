"""The commands of `gpt2`, a module for each command or group."""
