"""The page in the browser: fill in frames, longer clips, and driving; `mardini app`, or `make_app` in a server of one's
own.

`server.py` puts it together, `page.py` lays out the tabs, `drive_socket.py` answers the WebSocket of the page in `static/`.
Needs the extra `demo`. Nothing here is imported by the rest of the package.
"""

from .limits import Limits


__all__ = ["Limits"]
