"""The version of the package, of the image's code and of every reply: written here alone."""

VERSION = "0.1.0"
