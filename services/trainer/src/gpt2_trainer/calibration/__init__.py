"""Which backend of Keras a training runs on: by rules, or by measuring its step on each."""
