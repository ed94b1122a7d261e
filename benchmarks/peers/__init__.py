"""The same tasks in other libraries, each in an environment of its own; see README.md."""
