"""Serve the page and the drive from one server; on this machine alone unless told otherwise."""

import os
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from ..demo_files import demo_clips
from .checkpoints import Checkpoints, find_checkpoints
from .drive_socket import STATIC, Drivers
from .driving import why_not
from .jobs import Jobs, Turns
from .limits import Limits
from .page import make_page, theme
from .site import Site
from .uploads import read_upload


PORT = 7860


class ThisMachineOnly:
    """Refuse requests that name another host than this machine.

    A page of somebody else can have its own name point to 127.0.0.1 (DNS rebinding); what it then asks for counts as
    this page's own, except for the name.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] in ("http", "websocket"):
            try:
                name = urlsplit(f"//{Headers(scope=scope).get('host', '')}").hostname
            except ValueError:  # half an IPv6 address
                name = None
            if name is None or not is_loopback(name):
                refusal = PlainTextResponse(
                    "This page answers to this machine's own names alone, such as localhost; behind another server, "
                    "start it with --behind-proxy.",
                    400,
                )
                await (WebSocketClose(1008) if scope["type"] == "websocket" else refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def make_app(checkpoints: Checkpoints, limits: Limits, room: Path, start: Path | None = None) -> FastAPI:
    """Return the application: the page at `/`, the drive at `/drive`.

    Args:
        checkpoints: what visitors may use.
        limits: what they may ask for.
        room: folder for uploads and results; whoever made it removes it.
        start: a clip or picture to drive from by default.
    """
    (room / "uploads").mkdir(parents=True, exist_ok=True)
    os.environ["GRADIO_TEMP_DIR"] = str(room / "uploads")  # Gradio has no argument for it
    app = FastAPI(openapi_url=None)
    app.include_router(Drivers(checkpoints, limits, start).router())
    site = Site(checkpoints, limits, Jobs(limits.job_seconds), Turns(limits.waiting), room / "results")
    return gr.mount_gradio_app(
        app,
        make_page(site),
        path="/",
        theme=theme(),
        css=(STATIC / "page.css").read_text(encoding="utf-8"),
        max_file_size=limits.upload_bytes,
        allowed_paths=sorted({str(clip.resolve().parent) for clip in demo_clips()}),
        footer_links=["gradio", "settings"],
        ssr_mode=False,
        show_error=False,
    )


@contextmanager
def room_for_visitors():
    """Yield a new folder, which is removed in the end with all uploads and results."""
    with tempfile.TemporaryDirectory(prefix="mardini-app-", ignore_cleanup_errors=True) as room:
        yield Path(room).resolve()


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def check_address(host: str, port: int) -> None:
    """Raise `ValueError` if nothing can listen at an address, and for port 0, which would be one that nobody knows."""
    if port == 0:
        raise ValueError("the port is 0; give one from 1 to 65535")
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except (OSError, OverflowError) as error:
        raise ValueError(f"cannot listen at {host}:{port} ({error}); give another --host or --port") from error


def check_drive(
    checkpoint: str, start: Path | None, device: str = "auto", dtype: str = "auto", lora: str = ""
) -> None:
    """Raise `ValueError` if a checkpoint cannot be driven, or a file cannot be started from."""
    if start is not None:
        if not start.is_file():
            raise ValueError(f"there is no file '{start}' to start from")
        read_upload(start, Limits())
    if reason := why_not(Checkpoints([checkpoint], True, device, dtype, lora=lora).lend(), Path(checkpoint).name):
        raise ValueError(reason)


def serve(
    checkpoints: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = PORT,
    device: str = "auto",
    dtype: str = "auto",
    limits: Limits | None = None,
    start: Path | None = None,
    path: str = "",
    open_browser: bool = False,
    lora: str = "",
    behind_proxy: bool = False,
) -> None:
    """Serve until interrupted.

    Args:
        checkpoints: folders or Hub ids to offer; by default those that `find_checkpoints` finds.
        host, port: where to listen. On another address than the loopback, visitors may use the offered checkpoints only.
        device, dtype: see `hardware.py`.
        limits: what visitors may ask for.
        start: a clip or picture to drive from by default.
        path: of the page to name and to open, such as `drive`.
        open_browser: whether to open it.
        lora: folder or Hub id of LoRA weights, used where a visitor names none.
        behind_proxy: whether another server of this machine passes requests on: whoever reaches it is a visitor, and may
            use the offered checkpoints only.

    Raises:
        ValueError: if there is no checkpoint, or the address cannot be listened at.
    """
    check_address(host, port)
    limits = limits or Limits()
    known = list(checkpoints) or find_checkpoints()
    is_own = is_loopback(host) and not behind_proxy
    offered = Checkpoints(known, is_own, device, dtype, limits.kept_pipelines, lora)
    with room_for_visitors() as room:
        app = make_app(offered, limits, room, start)
        if is_own:
            app.add_middleware(ThisMachineOnly)
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{port}/{path}"
        print(f"Open {address} in a browser; Ctrl+C ends it", flush=True)
        if open_browser:
            threading.Timer(1.0, webbrowser.open, [address]).start()
        uvicorn.run(
            app,
            host=host,
            port=port,
            log_level="warning",
            ws_max_size=limits.upload_bytes,
            timeout_graceful_shutdown=3,
        )
