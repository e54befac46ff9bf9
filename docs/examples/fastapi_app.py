"""Translation over HTTP: `uvicorn fastapi_app:app`."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from m2m100_onnx import DeadlineExceeded, M2M100Error, Translator

translator = Translator(os.environ.get("BUNDLE", "bundles/demo"))


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Closes the translator when the server ends, after the requests that it still answers."""
    yield
    translator.close()


app = FastAPI(lifespan=lifespan)


class Job(BaseModel):
    """What a client asks for."""

    texts: Annotated[list[str], Field(max_length=64)]
    source_lang: str
    target_lang: str


@app.post("/translate")
def translate(job: Job) -> list[str]:
    """Translates; a plain `def`, which FastAPI runs in a thread, so the server stays responsive."""
    return translator.translate(
        job.texts, source_lang=job.source_lang, target_lang=job.target_lang, timeout=30
    )


@app.exception_handler(M2M100Error)
def answer_error(_: Request, error: M2M100Error) -> JSONResponse:
    """Answers 504 when the time is over, 422 when the request is wrong, else 500."""
    status = 500
    if isinstance(error, DeadlineExceeded):
        status = 504
    elif isinstance(error, ValueError):
        status = 422
    return JSONResponse({"error": error.message, "position": error.position}, status)
