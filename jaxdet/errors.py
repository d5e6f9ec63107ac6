"""What goes wrong; light, so that options are read without jax, which would miss their flags."""


class InputError(ValueError):
    """What the user gave cannot be used: one line that says what, where, and what to do."""
