"""What can be chosen: architectures, training and sampling options, checked once and frozen. Imports no framework."""
