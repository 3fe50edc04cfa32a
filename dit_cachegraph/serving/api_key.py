"""The key that clients of the server have to give."""

import os

API_KEY_VARIABLE = "DIT_CACHEGRAPH_API_KEY"


def api_key_given() -> str | None:
    """That of the environment, None where none is set. Blanks around it don't count: a header has
    none, and a secret that was read from a file ends with a new line.

    Raises:
        ValueError: it is blank: whoever set it meant to have one.
    """
    given = os.environ.get(API_KEY_VARIABLE)
    if given is None:
        return None
    if not given.strip():
        raise ValueError(
            f"{API_KEY_VARIABLE} is set and blank, so that anybody could draw: give it a key, or "
            "unset it to ask for none"
        )
    return given.strip()
