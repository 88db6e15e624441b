"""The demo: a small real training on generated data, in either framework. `unified-tracker demo` runs it."""
