"""The WebSocket of the page for driving, and the page itself: static files, nothing from elsewhere.

The browser asks for frames when it is about to run out of them, with the keys that are pressed at that moment; so the
model never runs ahead, and rests while nobody looks.

Messages from the browser are JSON with `do`: `file` (followed by the bytes of a picture or clip to start from), `start`,
`next`, `restart`, `record`, `save`. Answers are JSON with `is`: `open`, `ready`, `cannot`, `busy`, `over`, `recording`, `error`; frames, see
`message_of`; and an mp4.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, HTTPException, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse

from ..demo_files import demo_clips
from ..video_io import write_video
from .checkpoints import Checkpoints
from .driving import ACTION, KEYS, Drive, message_of, start_frames, why_not
from .limits import Limits
from .site import for_visitors
from .uploads import read_upload


STATIC = Path(__file__).parent / "static"
MOST_STEPS = 25
FIRST = {"key": 0, "seconds": 0, "keys": [], "last": True}  # what is said of the frame to start from


class Drivers:
    """Serve the page for driving to some visitors at once.

    Args:
        checkpoints: what can be driven.
        limits: of each drive, and how many at once.
        start: a clip or picture to start from by default, else the first of the examples.
    """

    def __init__(self, checkpoints: Checkpoints, limits: Limits, start: Path | None = None):
        self.checkpoints, self.limits, self.start = checkpoints, limits, start
        self._driving = 0

    def router(self) -> APIRouter:
        """Return the routes `/drive`, `/drive/static/...` and `/drive/ws`."""
        router = APIRouter()
        files = {file.name: file for file in STATIC.iterdir()}

        @router.get("/drive", include_in_schema=False)
        async def page() -> FileResponse:
            return FileResponse(files["drive.html"])

        @router.get("/drive/static/{name}", include_in_schema=False)
        async def static(name: str) -> FileResponse:
            if name not in files:
                raise HTTPException(404)
            return FileResponse(files[name])

        router.add_api_websocket_route("/drive/ws", self.serve)
        return router

    async def serve(self, socket: WebSocket) -> None:
        """Serve one visitor until the connection ends."""
        if not _is_own_page(socket):
            await socket.close(code=1008, reason="only the page of this server may drive")
            return
        await socket.accept()
        if self._driving >= self.limits.drivers:
            await socket.send_json(
                {"is": "busy", "message": f"{self._driving} people are driving already; try again in a while."}
            )
            await socket.close()
            return
        self._driving += 1
        try:
            await _Visit(self, socket).run()
        except WebSocketDisconnect:
            pass
        finally:
            self._driving -= 1


class _Over(Exception):
    """Raised when the time of a visitor is up."""


class _Visit:
    """One connection."""

    def __init__(self, drivers: Drivers, socket: WebSocket):
        self.drivers, self.limits, self.socket = drivers, drivers.limits, socket
        self.drive: Drive | None = None
        self.file: tuple[str, bytes] | None = None
        self.until = time.monotonic() + self.limits.drive_seconds
        self.room = tempfile.TemporaryDirectory(prefix="mardini-drive-")

    async def run(self) -> None:
        actions: dict[str, Callable[[dict[str, Any]], Awaitable[None]]] = {
            "file": self._file,
            "start": self._start,
            "next": self._next,
            "restart": self._restart,
            "record": self._record,
            "save": self._save,
        }
        await self.socket.send_json(
            {
                "is": "open",
                "checkpoints": self.drivers.checkpoints.choices,
                "first": self.drivers.checkpoints.first_with(ACTION),
                "examples": [clip.stem for clip in demo_clips()],
                "own_start": self.drivers.start is not None,
                "most_bytes": self.limits.upload_bytes,
            }
        )
        with self.room:
            try:
                while True:
                    wish = _read_wish((await self._receive()).get("text") or "")
                    await self._do(actions.get(str(wish.get("do"))), wish, list(actions))
            except _Over:
                minutes = self.limits.drive_seconds / 60
                await self._say("over", f"This drive lasted {minutes:g} minutes; reload the page for another one.")
                await self.socket.close()

    async def _do(
        self, action: Callable[[dict[str, Any]], Awaitable[None]] | None, wish: dict[str, Any], known: list[str]
    ) -> None:
        try:
            if action is None:
                raise ValueError(f"unknown wish; do one of {', '.join(known)}")
            await action(wish)
        except (WebSocketDisconnect, _Over):
            raise
        except Exception as error:  # one visitor's trouble is not another's
            await self._say("error", for_visitors(error))

    async def _receive(self) -> MutableMapping[str, Any]:
        """Return the next message of the browser; raise `_Over` once the visitor's time is up."""
        left = self.until - time.monotonic()
        try:
            message = await asyncio.wait_for(self.socket.receive(), max(left, 0))
        except TimeoutError as error:
            raise _Over from error
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect
        return message

    async def _say(self, what: str, message: str) -> None:
        await self.socket.send_json({"is": what, "message": message})

    async def _file(self, wish: dict[str, Any]) -> None:
        data = (await self._receive()).get("bytes")
        if data is None:
            raise ValueError("a file was announced, and something else came; choose it again")
        self.file = (Path(str(wish.get("name", "file"))).name[-80:] or "file", data)

    async def _start(self, wish: dict[str, Any]) -> None:
        self.drive = None
        checkpoint, steps = str(wish.get("checkpoint") or ""), _number(wish, "steps", 3, 1, MOST_STEPS)
        seed, source = _number(wish, "seed", 0, 0, 2**53), str(wish.get("from", ""))
        pipe = await asyncio.to_thread(self.drivers.checkpoints.lend, checkpoint)
        if reason := why_not(pipe, Path(checkpoint or self.drivers.checkpoints.known[0]).name):
            await self._say("cannot", reason)
            return
        clip, rate = await asyncio.to_thread(self._read_start, source)
        frames = start_frames(clip, rate, pipe)
        self.drive = await asyncio.to_thread(Drive, pipe, frames, self.limits, steps, seed)
        width, height = self.drive.size
        await self.socket.send_json(
            {
                "is": "ready",
                "fps": self.drive.fps,
                "width": width,
                "height": height,
                "takes": str(self.drive.condition),
            }
        )
        await self.socket.send_bytes(message_of(self.drive.first_frame(), FIRST))

    def _read_start(self, source: str) -> tuple[list, float | None]:
        """Read what to start from: the visitor's own file, an example by its name, or the default."""
        if source == "file":
            if self.file is None:
                raise ValueError("no file was given to start from; choose a picture or a clip")
            path = Path(self.room.name) / self.file[0]
            path.write_bytes(self.file[1])
            try:
                return read_upload(path, self.limits)
            finally:
                path.unlink()
        examples = {clip.stem: clip for clip in demo_clips()}
        path = examples.get(source) or self.drivers.start or next(iter(examples.values()), None)
        if path is None:
            raise ValueError("there is nothing to start from; choose a picture or a clip")
        return read_upload(path, self.limits)

    def _driving(self) -> Drive:
        if self.drive is None:
            raise ValueError("not driving yet; press Start")
        return self.drive

    async def _next(self, wish: dict[str, Any]) -> None:
        drive = self._driving()
        keys = [key for key in KEYS if key in (wish.get("keys") or [])]
        strength = _number(wish, "strength", 100, 0, 100) / 100
        begin = time.perf_counter()
        frames = await asyncio.to_thread(drive.step, keys, strength)
        facts = {"key": wish.get("key", 0), "keys": keys, "seconds": time.perf_counter() - begin, "last": False}
        for frame in frames:
            await self.socket.send_bytes(message_of(frame, {**facts, "last": frame is frames[-1]}))

    async def _restart(self, _: dict[str, Any]) -> None:
        drive = self._driving()
        await asyncio.to_thread(drive.restart)
        await self.socket.send_bytes(message_of(drive.first_frame(), FIRST))

    async def _record(self, _: dict[str, Any]) -> None:
        self._driving().recording = True

    async def _save(self, _: dict[str, Any]) -> None:
        drive = self._driving()
        frames = drive.take_recording()
        if not frames:
            raise ValueError("nothing was recorded; press Record, drive, and then Save")
        path = Path(self.room.name) / "drive.mp4"
        await asyncio.to_thread(write_video, path, frames, drive.fps)
        await self.socket.send_json({"is": "recording", "frames": len(frames)})
        await self.socket.send_bytes(path.read_bytes())
        path.unlink()


def _is_own_page(socket: WebSocket) -> bool:
    """Return whether the connection comes from a page of this server, or from no page: any site could open one."""
    origin = socket.headers.get("origin")
    try:
        return not origin or urlsplit(origin).netloc == socket.headers.get("host")
    except ValueError:  # half an IPv6 address
        return False


def _read_wish(text: str) -> dict[str, Any]:
    try:
        wish = json.loads(text)
    except json.JSONDecodeError:
        wish = None
    return wish if isinstance(wish, dict) else {}


def _number(wish: dict[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = wish.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name} is {str(value)[:20]}; give {low} to {high}")
    return int(value)
