"""The version of vizsla, in a file of its own so that the build and a server read it cheaply."""

__version__ = "0.1.0"
