"""An exported student as a web service that answers requests that wait at the same time as one batch.

python app.py model.onnx
"""

import asyncio
import sys
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from serve import Student

MOST = 32  # rows of a batch
WAIT = 0.002  # seconds to wait for others
WAITING = 1024  # waiting rows, beyond which a request is refused
A_NUMBER = 64  # most bytes of a number in a request, with its separators


class Row(BaseModel):
    """The levels of a picture, (H, W) or (H, W, C), or the numbers of a row."""

    x: list[Any]


class Batcher:
    """Answers rows, in one batch those that wait at the same time."""

    def __init__(self, ask, most=MOST, wait=WAIT, waiting=WAITING):
        """`ask` maps an array of rows to a list of as many answers; it runs in a thread of its own."""
        self.ask, self.most, self.wait = ask, most, wait
        self.queue = asyncio.Queue(waiting)

    async def __call__(self, row):
        """The answer for one row; raises asyncio.QueueFull if too many wait, and whatever `ask` raises for its
        batch."""
        answer = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((row, answer))
        return await answer

    async def run(self):
        """Answer requests forever."""
        while True:
            batch = [await self.queue.get()]
            if self.queue.qsize() < self.most - 1:
                await asyncio.sleep(self.wait)
            while len(batch) < self.most and not self.queue.empty():
                batch.append(self.queue.get_nowait())
            try:
                found = await asyncio.to_thread(self.ask, np.stack([row for row, _ in batch]))
            except Exception as error:  # passed on to the requests of this batch; later ones are answered
                found = [error] * len(batch)
            for (_, answer), said in zip(batch, found, strict=True):
                if answer.done():  # the client has gone
                    continue
                if isinstance(said, Exception):
                    answer.set_exception(said)
                else:
                    answer.set_result(said)


class Bounded:
    """An application that limits the bytes of a request's body; a longer one gets status 413."""

    def __init__(self, app, most):
        self.app, self.most = app, most

    async def __call__(self, scope, receive, send):
        read = 0

        async def counted():
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.most:  # the rest is not read, which ends the connection
                raise HTTPException(413, f"a request has at most {self.most:,} bytes", {"Connection": "close"})
            return message

        await self.app(scope, counted, send)


def make_app(model, **limits):
    """The service for an exported file; `limits` are those of `Batcher`."""
    student = Student(model)
    batcher = Batcher(student, **limits)

    @asynccontextmanager
    async def running(_):
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()

    app = FastAPI(title="a distilled ensemble", lifespan=running)
    app.add_middleware(Bounded, most=1024 + A_NUMBER * int(np.prod(student.shape)))

    @app.get("/health")
    async def health():
        return {"task": student.task, "classes": student.classes, "takes": student.kind, "shape": student.shape}

    @app.post("/predict")
    async def predict(row: Row):
        try:
            x = student.ready([row.x])[0]
            if not np.isfinite(x).all():
                raise ValueError("a number of the row is not finite")
        except (ValueError, TypeError) as error:  # before it joins a batch with others
            raise HTTPException(422, f"x is no row of {student.kind} {tuple(student.shape)}: {error}") from None
        try:
            return await batcher(x)
        except asyncio.QueueFull:
            raise HTTPException(503, "too many rows wait", {"Retry-After": "1"}) from None

    return app


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(make_app(sys.argv[1]))
