"""Tell which codecs this PyAV has."""

import av


def has_codec(name: str, encodes: bool) -> bool:
    """Return whether FFmpeg, as PyAV was built with it, has an encoder, or a decoder, of this name."""
    try:
        av.Codec(name, "w" if encodes else "r")
    except ValueError:  # of which PyAV's error is one
        return False
    return True
