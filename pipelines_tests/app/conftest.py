"""Worlds that all tests of the page share, and a server of them in this process."""

import socket
import threading
import time

import pytest

from pipelines_tests.app.worlds import save_worlds


@pytest.fixture(scope="session")
def worlds(tmp_path_factory):
    """The folders of two tiny checkpoints: without actions, and with them."""
    return save_worlds(tmp_path_factory.mktemp("worlds"))


@pytest.fixture(scope="session")
def serve(tmp_path_factory, worlds):
    """Start servers that live as long as the tests; returns a function from limits to an address."""
    uvicorn = pytest.importorskip("uvicorn")
    pytest.importorskip("gradio")
    from diffusers_mardini.app import server as app_server
    from diffusers_mardini.app.checkpoints import Checkpoints
    from diffusers_mardini.app.jobs import Jobs

    servers, patch = [], pytest.MonkeyPatch()
    room = tmp_path_factory.mktemp("room")  # one for all: Gradio knows one folder for a whole process

    class SeenJobs(Jobs):
        """Counts the work that was ended before its time."""

        ended = 0

        def cancel(self, session):
            SeenJobs.ended += session in self._jobs
            super().cancel(session)

    patch.setattr(app_server, "Jobs", SeenJobs)

    def start(limits, open_to_others=True) -> str:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        app = app_server.make_app(Checkpoints(worlds, open_to_others, "cpu", "float32"), limits, room)
        server = uvicorn.Server(
            uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", ws_max_size=limits.upload_bytes)
        )
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        servers.append((server, thread))
        return f"http://127.0.0.1:{port}"

    start.ended = lambda: SeenJobs.ended
    yield start
    patch.undo()
    for server, thread in servers:
        server.should_exit = server.force_exit = True
        thread.join(timeout=10)
