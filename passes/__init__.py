"""The passes of the compiler, in files that carry their names."""
