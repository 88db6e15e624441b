"""The backends that come with the library. They go through the same door as everybody else's."""
