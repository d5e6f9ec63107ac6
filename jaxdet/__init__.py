"""jaxdet: detection, localisation, classification and face verification as pure JAX functions."""

__version__ = "0.1.0.dev0"
